"""The view of a model that transformers has built: its modules, and what transformers alone knows of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mxfp4_core.modules import describe_parameters
from mxfp4_core.naming import CheckpointTensor, Headers, ModelView, Parameter
from mxfp4_transformers import converters, meta
from mxfp4_transformers.rows import unmoved

_MULTIPLIED = ("linear", "head", "router", "experts")
_FLOATS = ("BF16", "F16", "F32", "F64")


def view_of(model: PreTrainedModel, headers: Headers, *, writing: bool = False) -> ModelView:
    """Return what transformers knows about a model and the checkpoint that it loads.

    Args:
        model: the model on the meta device, before anything in it was replaced.
        headers: the tensors of the checkpoint; those with no place in the model are left out. May be empty.
        writing: say what matters to who writes a quantised folder, too: which classes read a weight themselves, and
            which weights transformers makes of others such that it takes no codes.
    """
    ties: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    kept = {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    kept |= {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    patterns = [re.compile(rf"(^|\.){pattern}($|\.)") for pattern in sorted(kept)]
    parameters = describe_parameters(
        model,
        heads=list(_heads(model)),
        ties={**{source: target for target, source in ties.items()}, **ties},
        keep=lambda path: "the model keeps it in float32" if any(p.search(path) for p in patterns) else "",
        readers=writing,
    )
    stored = model.state_dict().keys() - parameters.keys()
    parameters |= {
        name: Parameter(name, "other", tuple(buffer.shape), "a buffer")
        for name, buffer in model.named_buffers()
        if name in stored
    }
    conversions = converters.default_conversions(model)
    tensors = {}
    for group in converters.groups(headers, conversions, model):
        known = tuple(target for target in group.targets if target in parameters)
        for name in group.names if known else ():
            dtype, shape = headers[name]
            if len(shape) == 2 and not name.endswith(".weight"):
                # The commands write codes for the weights of modules, and decide as a load does.
                told = f"the file has it in {name.rpartition('.')[2]!r}, which is no weight of a module"
                bare = [each for each in known if parameters[each].kind == "linear"]
                parameters |= {each: replace(parameters[each], keep=told) for each in bare}
            first = _k_first(shape if dtype in _FLOATS else (), parameters[known[0]], group.turned)
            tensors[name] = CheckpointTensor(name, known, first)
        quantised = [each for each in known if parameters[each].kind in ("linear", "experts")]
        if writing and quantised and (why := unmoved(group, _logical(group.names, headers, tensors), model)):
            parameters |= {each: replace(parameters[each], refusal=why) for each in quantised}
    return ModelView(
        f"transformers {meta.VERSION}",
        type(model).__name__,
        parameters,
        tensors,
        converters.renames(conversions),
        model.config.to_dict(),
    )


def _logical(
    names: Iterable[str], headers: Headers, tensors: Mapping[str, CheckpointTensor]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors of a file with k last."""
    found = {}
    for name in names:
        shape = tuple(headers[name][1])
        turned = name in tensors and tensors[name].k_first
        found[name] = (*shape[:-2], *reversed(shape[-2:])) if turned else shape
    return found


def _k_first(stored: tuple[int, ...], parameter: Parameter, turned: bool) -> bool:
    """Say whether a file holds a tensor with K before N: its sizes tell, and where they do not, the loader does."""
    if parameter.kind not in _MULTIPLIED or len(parameter.shape) < 2:
        return False
    if len(stored) >= 2:
        k = parameter.shape[-1]
        last, before = stored[-1] == k, stored[-2] == k
        if last != before:
            return before
    return parameter.k_first != turned


def _heads(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that give the output: what the model names, and what has a row for each label or token."""
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        try:
            head: Any = module.get_output_embeddings()
        except (AttributeError, NotImplementedError):
            continue  # models of speech and vision have none, and some say so
        if isinstance(head, nn.Module):
            yield head
    sizes = {*_sizes(getattr(model, "config", None))}
    for path, module in model.named_modules():
        *around, _ = path.split(".")
        outside = not any(part.isdecimal() for part in around)
        if outside and isinstance(module, nn.Linear) and module.out_features in sizes:
            yield module


def _sizes(config: Any) -> Iterator[int]:
    """Yield the sizes of the outputs that a config and its sections describe: labels, and entries of vocabularies.

    A width that is one of these by chance is none: then the size tells nothing.
    """
    sections = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))]
    told = [vars(section) for section in sections if isinstance(section, PretrainedConfig)]
    widths = {
        each[name] for each in told for name in ("hidden_size", "d_model") if type(each.get(name)) is int
    }
    labels = {section.num_labels for section in sections if isinstance(section, PretrainedConfig)}
    sizes = {value for each in told for key, value in each.items() if key.endswith("vocab_size")}
    yield from (size for size in labels | sizes if type(size) is int and size > 1 and size not in widths)
