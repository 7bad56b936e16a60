"""The command ``mxfp4``; it needs the extra ``cli``, and says so where that is not installed.

Command modules import nothing but typer at the top, so that ``mxfp4 --help`` answers at once and ``plan`` and
``doctor`` work where torch is missing. They print results to stdout, progress to stderr, and let `Mxfp4Error`
escape: `main` turns it into a message and an exit code.

Exit codes: 0 done, 1 something was found (a damaged file, a weight that cannot be quantised, a difference),
2 misuse (a bad option, path or setting), 130 interrupted.
"""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from mxfp4_core._exports import exports
from mxfp4_core._extras import say_what_to_install
from mxfp4_core._text import printable
from mxfp4_core.errors import ConfigError, Mxfp4Error, OutputError

if TYPE_CHECKING:
    from mxfp4_core.cli.commands import COMMANDS as COMMANDS
    from mxfp4_core.cli.commands import app as app

_HOMES = {"COMMANDS": "commands", "app": "commands"}


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def exit_code(error: Mxfp4Error) -> int:
    """Return 2 for errors that another command line avoids, 1 for those that lie in the files."""
    return 2 if isinstance(error, ConfigError | OutputError) else 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        argv: arguments without the program's name; ``sys.argv`` when left out.

    Raises:
        SystemExit: always, with the exit code.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    gc.set_threshold(
        100_000, 50, 100
    )  # a plan makes a million objects that stay, and lives as long as they do
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    with _interruptions() as interrupted:
        try:
            _ended(arguments)
        except BaseException as error:
            # What is interrupted may end in any error: imports wrap it in errors of their own.
            if not interrupted and not isinstance(error, KeyboardInterrupt):
                raise
            raise SystemExit(INTERRUPTED) from None


def _ended(arguments: list[str]) -> None:
    """Run the command; every way in which it may end becomes a message and an exit code."""
    try:
        try:
            _run(arguments)
        finally:
            if sys.stdout is not None:  # closed by who started the command
                sys.stdout.flush()
    except Mxfp4Error as error:
        if "--json" in arguments:
            parts = {"type": type(error).__name__, "what": error.what, "seen": error.seen}
            print(json.dumps({"error": {**parts, "rule": error.rule, "fix": error.fix}}, indent=2))
        else:
            print(f"mxfp4: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from None
    except MemoryError:
        print("mxfp4: out of memory; free some and run the same command again", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        # Files that a command works on have errors of their own: what is left is the output, on a full disk or closed.
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # else it is tried once more at the end
        what = "cannot write the output" if error.filename is None else "the system refused"
        print(f"mxfp4: {what}: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Note interruptions, which imports may turn into other errors; what is yielded is empty if there was none."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _run(arguments: list[str]) -> None:
    try:
        from mxfp4_core.cli.commands import app
    except ModuleNotFoundError as error:
        say_what_to_install("the command mxfp4 cannot run", error)
        raise
    app(args=arguments, prog_name="mxfp4")


__all__ = ["COMMANDS", "app", "exit_code", "main"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
