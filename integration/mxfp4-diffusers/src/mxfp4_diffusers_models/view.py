"""The view of a model that diffusers has built: its modules, and what its class says about their precision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import diffusers

from mxfp4_core.modules import describe_parameters
from mxfp4_core.modules import view_of as plain_view
from mxfp4_core.naming import CheckpointTensor, Headers, ModelView, Parameter

if TYPE_CHECKING:
    from diffusers import ModelMixin

VERSION: Final[str] = diffusers.__version__
"""The release of diffusers that is installed."""

# What gives the output stands beside the blocks: proj_out of most, proj_out_1 and _2 of DiT, Z-Image's all_final_layer.
_HEAD: Final = re.compile(r"(proj_out(_\d)?|(all_)?final_layer)(\..+)?")
# And what takes the input: proj_in of most, img_in and txt_in of Qwen-Image. Those called embedders are known by that.
_INPUT: Final = re.compile(r"\w+_in(\..+)?")


def view_of(model: ModelMixin, headers: Headers) -> ModelView:
    """Return what diffusers knows about a model and the checkpoint that it loads.

    Args:
        model: the model on the meta device, before anything in it was replaced.
        headers: the tensors of the checkpoint; those with no place in the model are left out. May be empty.
    """
    own: Any = model
    float32 = frozenset(own._keep_in_fp32_modules or ())
    sensitive = tuple(own._skip_layerwise_casting_patterns or ())

    def keep(path: str) -> str:
        return "the model keeps it in float32" if float32 & {*path.split(".")} else ""

    def default(path: str) -> str:
        # As diffusers' own casting, which goes from the outside in and leaves alone what lies in such a module.
        around = [path[: match.start()] for match in re.finditer(r"\.|$", path)]
        found = next((text for text in sensitive if any(re.search(text, each) for each in around)), None)
        if found is None and _INPUT.fullmatch(path):
            return "it takes the input of the model, before the blocks"
        return f"{type(model).__name__} lists {found!r} as sensitive to precision" if found else ""

    heads = [module for path, module in model.named_modules() if _HEAD.fullmatch(path)]
    ties = {name: each.tied_to for name, each in plain_view(model).parameters.items() if each.tied_to}
    parameters = describe_parameters(model, heads=heads, ties=ties, keep=keep, default=default)
    parameters |= {
        name: Parameter(name, "other", tuple(tensor.shape), "a buffer")
        for name, tensor in model.state_dict().items()
        if name not in parameters
    }
    tensors = {name: CheckpointTensor(name, (name,)) for name in headers if name in parameters}
    config = {key: value for key, value in own.config.items() if not key.startswith("_")}
    config = {**config, "_class_name": type(model).__name__}
    config.pop("quantization_config", None)
    return ModelView(f"diffusers {VERSION}", type(model).__name__, parameters, tensors, config=config)


__all__ = ["VERSION", "view_of"]
