"""The commands, as a person types them, in this process."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

from architectures.rows import Fault
from mxfp4_core.cli import main


def command(step: str, *arguments: object) -> tuple[int, str, str]:
    """Run ``mxfp4`` and return its exit code, its output and its messages.

    Raises:
        Fault: it ended with an exception of others.
    """
    out, messages = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(messages):
            main([str(each) for each in arguments])
    except SystemExit as end:
        return int(end.code or 0), out.getvalue(), messages.getvalue()
    except Exception as error:  # whatever a command lets through
        raise Fault(step, f"foreign exception: {type(error).__name__}: {error}") from error
    return 0, out.getvalue(), messages.getvalue()


def done(step: str, *arguments: object) -> str:
    """Run a command that must succeed, and return its output.

    Raises:
        Fault: it did not.
    """
    code, out, messages = command(step, *arguments)
    if code:
        with contextlib.suppress(ValueError):
            found = json.loads(out)
            out = str(found.get("findings") or found.get("error"))
        raise Fault(step, f"mxfp4 {arguments[0]} ends with {code}: {out[:600]} {messages[-600:]}")
    return out


def told(step: str, *arguments: object) -> Any:
    """Run a command with ``--json`` and return what it says."""
    return json.loads(done(step, *arguments, "--json"))


__all__ = ["command", "done", "told"]
