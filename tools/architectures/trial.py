"""Everything that is done with a model of one type."""

from __future__ import annotations

import ast
import gc
import re
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from architectures import judge, steps
from architectures.build import build
from architectures.catalogue import Kind
from architectures.rows import FAULT, NOT_BUILT, NOTHING, REFUSED, WORKS, Fault, Row
from mxfp4_core.errors import Mxfp4Error

_BEFORE_WEIGHTS = frozenset({"_process_model_before_weight_loading", "validate_environment", "plan_model"})


def run(kind: Kind, work: Path, *, family_defaults: bool = False) -> Row:
    """Try one type, and return what was found; nothing escapes but `KeyboardInterrupt` and the like.

    Args:
        kind: the type.
        work: an empty folder.
        family_defaults: keep what the table of families keeps; else that is tried as well.
    """
    started, row = time.monotonic(), Row(kind.name, kind.task)
    try:
        try:
            row.model = type(build(kind, work / "bf16")).__name__
        except (
            Exception
        ) as error:  # transformers refuses a config, lacks a package, or cannot read what it wrote
            row.status, row.message = NOT_BUILT, _told(error)
            return row
        gc.collect()
        _try(kind, work, row, family_defaults)
    except Fault as fault:
        row.status, row.step, row.message = FAULT, fault.step, fault.message
    except Exception as error:  # ours or not: it was not expected here
        row.status, row.message = FAULT, f"{_told(error)} [{_where(error)}]"
        row.step = row.step or "unexpected"
    finally:
        row.seconds = round(time.monotonic() - started, 1)
    return row


def _try(kind: Kind, work: Path, row: Row, family_defaults: bool) -> None:
    step = "load"
    settings: dict[str, Any] = {} if family_defaults else {"family_defaults": False}
    try:
        loaded = steps.load_quantized(kind, work / "bf16", torch.bfloat16, settings)
    except Mxfp4Error as error:
        if "nothing is left to quantise" in str(error):
            steps.nothing(work / "bf16")
            row.status, row.message = NOTHING, ""
            return
        row.pattern, row.message = _pattern(error), " ".join(str(error).split())
        settings = {**settings, "ignore": [row.pattern]}
        try:
            loaded = steps.load_quantized(kind, work / "bf16", torch.bfloat16, settings)
        except Exception as second:
            raise Fault(step, f"refused with the pattern {row.pattern!r}: {_told(second)}") from second
    except Exception as error:
        raise Fault(step, f"foreign exception: {_told(error)} [{_where(error)}]") from error
    plain = steps.load(kind, work / "bf16", torch.bfloat16)
    weights = dict(loaded.hf_quantizer.plan.weights)
    row.weights, row.share = len(weights), round(judge.share(plain, weights), 3)
    trial = steps.Trial(kind, work, settings, loaded, plain, weights)
    for row.step, work_of in steps.STEPS.items():
        try:
            work_of(trial)
        except Fault:
            raise
        except Exception as error:  # ours, where it should not be, or of others
            raise Fault(row.step, f"{_told(error)} [{_where(error)}]") from error
        finally:
            row.forward, row.ran = trial.forward, trial.ran
    row.step = ""
    row.status = REFUSED if row.pattern else WORKS


def _pattern(error: Mxfp4Error) -> str:
    """Return the one pattern that an error prints.

    Raises:
        Fault: it prints none or several, or weights were read before.
    """
    frames = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    text = " ".join(str(error).split())
    if not frames & _BEFORE_WEIGHTS:
        raise Fault("load", f"refused after weights were read: {type(error).__name__}: {text}")
    found = re.search(r"ignore=(\[.*?\])(?:,| or|$|\.)", text)
    patterns = ast.literal_eval(found[1]) if found else []
    if len(patterns) != 1:
        raise Fault("load", f"refused with {len(patterns)} patterns: {type(error).__name__}: {text}")
    return str(patterns[0])


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)


__all__ = ["run"]
