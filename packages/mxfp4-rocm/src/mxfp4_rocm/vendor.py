"""AITER's functions, imported when one is first called: that starts the device, and may compile for minutes."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

from mxfp4_core.errors import BackendError
from mxfp4_rocm.contract import CALLS, installed
from mxfp4_rocm.limits import INSTALL


@functools.cache
def function(name: str) -> Any:
    """Return a function, class or table of AITER, from wherever the installed version has it.

    Args:
        name: one of ``contract.CALLS``.

    Raises:
        BackendError: it is nowhere, or importing its module failed.
    """
    call, seen = CALLS[name], []
    for home in call.homes:
        try:
            module = import_module(home)
        except ModuleNotFoundError as error:
            seen.append(str(error))
            continue
        except Exception as error:  # whatever a vendor's package raises at import: the reader needs to see it
            seen.append(f"importing {home} raised {type(error).__name__}: {error}")
            continue
        for each in (call.name, *call.instead):
            if hasattr(module, each):
                return getattr(module, each)
        seen.append(f"{home} has no {call.name}")
    raise BackendError(
        f"{name} of AITER",
        seen="; ".join(seen),
        rule=f"it stands in {' or '.join(call.homes)}",
        fix=f"`mxfp4 doctor --backend rocm` says what is missing; {INSTALL}",
    )


def takes(name: str, argument: str) -> bool:
    """Say whether a function has an argument of that name, by its source.

    The function itself does not tell: the wheel registers ``gemm_a4w4`` with torch, and what is called then takes
    ``(*args, **kwargs)``.
    """
    here = installed()
    return here is not None and name in here.calls and argument in here.calls[name].arguments


def has(name: str) -> bool:
    """Say whether the installed AITER has a function with the arguments that this package passes."""
    here = installed()
    return here is not None and here.has(name)


def forget() -> None:
    """Forget what was imported, for tests that put another AITER in its place."""
    function.cache_clear()


__all__ = ["forget", "function", "has", "takes"]
