"""Tell an adapter (LoRA and its kin) from a model: its tensors are factors of updates, not weights."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from mxfp4_core.checkpoint.header import damaged
from mxfp4_core.checkpoint.places import is_file, is_folder

CONFIG = "adapter_config.json"
"""What peft writes beside an adapter; transformers then takes the folder for one."""

# peft: lora_A, lora_embedding_B, lora_magnitude_vector, hada_w1_a, lokr_w1, ia3_l, oft_r, boft_R, vera_lambda_b;
# diffusers and kohya: lora.up, lora_down, alpha.
_FACTOR = re.compile(
    r"(.*[._])?(lora_(A|B|embedding_A|embedding_B|up|down|mid|magnitude_vector)|lora\.(up|down)|hada_[wt]\w+|lokr_[wt]\w+"
    r"|ia3_l|b?oft_[rRs]|vera_lambda_[bd]|alpha|dora_scale)(\..*)?"
)


def is_adapter(folder: Path) -> bool:
    """Return whether transformers would take a folder for an adapter."""
    return is_file(folder / CONFIG)


def refuse_adapter(root: Path, tensors: Collection[str]) -> None:
    """Refuse a folder or file that holds an adapter and not a model.

    Args:
        root: the folder or file.
        tensors: names of its tensors.

    Raises:
        CheckpointError: it is an adapter.
    """
    told = is_folder(root) and is_adapter(root)
    if not told and not (tensors and all(map(_FACTOR.fullmatch, tensors))):
        return
    damaged(
        root,
        f"{CONFIG}: an adapter"
        if told
        else f"only factors of updates, for example {min(tensors)!r}: an adapter",
        "what is quantised is a model; an adapter changes the weights of one",
        "merge it first (peft: PeftModel.from_pretrained(base, adapter).merge_and_unload(), then save_pretrained), or "
        "load it onto the quantised model",
    )


__all__ = ["CONFIG", "is_adapter", "refuse_adapter"]
