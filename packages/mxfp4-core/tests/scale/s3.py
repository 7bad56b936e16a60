"""An S3 server (moto), and a door in front of it that fails, waits or hangs up as a test wants."""

from __future__ import annotations

import http.client
import logging
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

BUCKET = "models"
CODES = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}
NOT_PASSED = ("connection", "transfer-encoding", "date", "server")


@dataclass
class Fault:
    """What happens to requests that match.

    Attributes:
        method: regular expression for the method.
        path: regular expression for path and query.
        status: answer with it and do not ask the server; 0 to hang up in the middle of the answer.
        wait: seconds to wait and then to hang up, the server not having been asked.
        times: how often.
    """

    method: str
    path: str
    status: int = 200
    wait: float = 0.0
    times: int = 1 << 30


@dataclass
class Door:
    """The address of the server for clients, the faults, and what has been asked."""

    port: int
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.asked.append(f"{method} {path}")
            for each in self.faults:
                if each.times and re.fullmatch(each.method, method) and re.search(each.path, path):
                    each.times -= 1
                    return each
        return None


def opened(backend: int) -> tuple[Door, ThreadingHTTPServer]:
    """Return a door in front of a server on this port, and what serves it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = (
            True  # head and body are two writes: the second would wait 40 ms for an answer
        )

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client has gone
                self.close_connection = True

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else b""
            found = door.fault(self.command, self.path)
            if found:
                time.sleep(found.wait)
                if found.wait:
                    self.close_connection = True
                    return
                if found.status in CODES:
                    code = CODES[found.status]
                    text = f"<Error><Code>{code}</Code><Message>by a test</Message></Error>"
                    self.reply(found.status, {}, text.encode())
                    return
            server = http.client.HTTPConnection("127.0.0.1", backend, timeout=60)
            headers = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
            server.request(self.command, self.path, body, headers)
            got = server.getresponse()
            data = got.read()
            server.close()
            kept = {key: value for key, value in got.getheaders() if key.lower() not in NOT_PASSED}
            if self.command != "HEAD":
                kept["Content-Length"] = str(len(data))
            self.reply(got.status, kept, data, cut=found is not None and found.status == 0)

        def reply(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
            self.send_response(status)
            if not any(key.lower() == "content-length" for key in headers):
                headers["Content-Length"] = str(len(data))
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    door = Door(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return door, server


def started() -> ThreadedMotoServer:
    """Start a server on a free port."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    return server
