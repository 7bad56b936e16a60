"""Select a backend for every MXFP4 module of a model, and derive its layout."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn

from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.select import BackendOptions, select_backend
from mxfp4_core.backend.selection import Selection
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.held import Mxfp4Held

_LOG = logging.getLogger("mxfp4_core.modules")


def prepare_model(
    model: nn.Module,
    *,
    backend: str | None = None,
    fallback: str | None = None,
    backend_options: BackendOptions | None = None,
    dtype: torch.dtype = torch.bfloat16,
    consume: bool = False,
) -> dict[str, Selection]:
    """Select a backend for every MXFP4 module of a model and prepare it.

    The choice is logged once for each distinct problem, as a warning where it is the fallback.

    Args:
        model: with loaded weights, on the device where it will run.
        backend: as in ``select_backend``.
        fallback: as in ``select_backend``.
        backend_options: as in ``select_backend``.
        dtype: of the activations.
        consume: as in ``Mxfp4Module.prepare``; bytes that several modules of the model share are kept from it.

    Returns:
        The selection for each module, by its name; modules that ask the same share one, and those that keep their own
        code have none.

    Raises:
        BackendError: no backend for one of the modules; nothing was prepared then.
        ConfigError: as ``select_backend``.
        FormatError: the device cannot represent a scale byte of a weight, which is named; modules before it are
            prepared, the others are what they were.
    """
    modules = {key: module for key, module in model.named_modules() if isinstance(module, Mxfp4Module)}
    answers: dict[Problem, Selection] = {}
    chosen: dict[str, Selection] = {}
    for key, module in modules.items():
        if isinstance(module, Mxfp4Held):
            continue
        problem = module.question(dtype)
        if problem not in answers:
            answer = answers[problem] = select_backend(
                problem, backend=backend, fallback=fallback, backend_options=backend_options
            )
            level = logging.WARNING if answer.fallback else logging.INFO
            _LOG.log(level, "%s runs %s: %s", answer.backend.name, problem, answer.reason)
        chosen[key] = answers[problem]
    sole = alone(modules)
    for key, module in modules.items():
        if isinstance(module, Mxfp4Held):
            module.prepare(None, dtype=dtype, name=key)
            continue
        choice = chosen[key]
        module.prepare(
            choice.backend,
            dtype=dtype,
            consume=consume and key in sole,
            options=choice.problem.options,
            name=key,
        )
    return chosen


def alone(modules: Mapping[str, Mxfp4Module]) -> set[str]:
    """Return the names of those modules whose canonical bytes no other one of them holds."""
    users = Counter(place for module in modules.values() for place in set(_places(module)))
    return {key for key, module in modules.items() if all(users[place] == 1 for place in _places(module))}


def _places(module: Mxfp4Module) -> list[int]:
    """Return the addresses of the canonical bytes that a module holds; none where they have no memory."""
    names = (name for matrix in module.matrices for name in module.buffer_names(matrix).values())
    held = (module._buffers.get(name) for name in names)
    return [tensor.data_ptr() for tensor in held if tensor is not None and not tensor.is_meta]


__all__ = ["alone", "prepare_model"]
