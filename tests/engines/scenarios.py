"""What the scripts of all engines share: scenarios come one a line, and each runs in a process of its own.

A scenario is a table: ``name``, ``log`` and ``answer`` (files), ``variables`` of the environment, and what the script
of the engine takes. An error is an answer, too.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Run each scenario that stands on a line of the standard input, and print a line when it has ended.

    The engine is imported before, once for all of them: that takes longer than most scenarios. A second engine in one
    process would find what the first one left.

    Args:
        run: does it, and returns what is written into ``answer``.
    """
    ended = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints is no answer
    print("ready", file=ended, flush=True)
    for line in sys.stdin:
        scenario = json.loads(line)
        if (child := os.fork()) == 0:
            _alone(run, scenario)
        os.waitpid(child, 0)
        print(scenario["name"], file=ended, flush=True)


def _alone(run: Callable[[dict[str, Any]], dict[str, Any]], scenario: dict[str, Any]) -> None:
    os.setsid()  # SGLang ends the whole group of a process when it fails
    log = os.open(scenario["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(scenario.get("variables", {}))
    began = time.perf_counter()
    try:
        answer = run(scenario)
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    answer["seconds"] = time.perf_counter() - began
    Path(scenario["answer"]).write_text(json.dumps(answer))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
