"""Names that numbers alone set apart are decided about once, and as if each were asked about by itself."""

from __future__ import annotations

from typing import Any

import pytest

from mxfp4_core import Mxfp4Config
from mxfp4_core.errors import PatternError
from mxfp4_core.naming import CheckpointTensor, ModelView, Parameter, Resolver

Names = list[tuple[str, tuple[int, ...]]]


def moe(layers: int, experts: int) -> Names:
    found: Names = [
        ("model.embed_tokens.weight", (96, 64)),
        ("lm_head.weight", (96, 64)),
        ("3.weight", (64, 64)),
    ]
    for layer in range(layers):
        head = f"model.layers.{layer}"
        found += [(f"{head}.self_attn.{each}_proj.weight", (64, 64)) for each in "qkvo"]
        found += [(f"{head}.self_attn.q_proj.bias", (64,)), (f"{head}.input_layernorm.weight", (64,))]
        found += [(f"{head}.mlp.gate.weight", (experts, 64)), (f"{head}.mtp_block.0.fc.weight", (64, 64))]
        for expert in range(experts):
            one = f"{head}.mlp.experts.{expert}"
            found += [(f"{one}.{each}_proj.weight", (64, 64)) for each in ("gate", "up", "down")]
    found += [(f"lm_heads.{number}.weight", (96, 64)) for number in range(3)]
    found += [
        ("transformer.h.0.mlp.experts.gate_up_proj", (4, 64, 32)),
        ("visual.blocks.7.conv1.weight", (8, 8, 3)),
    ]
    return found


def view_of(names: Names, lost: str = "self_attn.o_proj") -> ModelView:
    """Return a view that knows every name, but for layers that differ: one kept, one tied, one that is not loaded."""
    parameters: dict[str, Parameter] = {}
    for name, shape in names:
        kind: Any = "norm" if len(shape) < 2 else "linear"
        keep = "the model keeps it in float32" if ".layers.1.self_attn.o_proj." in name else ""
        tied = "model.embed_tokens.weight" if name == "lm_head.weight" else ""
        if f".layers.2.{lost}." not in name:
            parameters[name] = Parameter(name, kind, shape, "Linear", keep=keep, tied_to=tied)
    tensors = {name: CheckpointTensor(name, (name,)) for name in parameters}
    return ModelView("a library", "Model", parameters, tensors)


@pytest.mark.parametrize("known", [False, True], ids=["names", "library"])
@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("renames", [(), (("blocks", "layers"),), (("layers.0", "first"),)])
def test_decisions_are_those_of_each_name_by_itself(known: bool, layers: int | None, renames: Any) -> None:
    names = moe(4, 5)
    view = view_of(names) if known else None
    made = Resolver(Mxfp4Config(), layers=layers, renames=renames, view=view)
    found = made.decide_all(names)
    alone = Resolver(Mxfp4Config(), layers=layers, renames=renames, view=view)
    assert found == [alone.decide(*each) for each in names]
    assert {each.quantize for each in found} == {True, False}


def test_a_name_is_asked_about_once_for_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    names, asked = moe(30, 40), list[str]()
    decide = Resolver._decide
    monkeypatch.setattr(
        Resolver, "_decide", lambda self, *each: (asked.append(each[0]), decide(self, *each))[1]
    )
    Resolver(Mxfp4Config(), layers=30).decide_all(names)
    assert len(names) > 3000 and len(asked) < 30
    asked.clear()
    Resolver(Mxfp4Config(ignore=["layers.3.mlp.experts"]), layers=30).decide_all(names)
    assert len(asked) == len(names)  # a pattern may tell numbers apart


def test_parts_that_differ_are_refused_as_ever() -> None:
    names = moe(4, 5)
    with pytest.raises(PatternError, match=r"model\.layers\.2\.self_attn\.qkv_proj would be split") as caught:
        Resolver(Mxfp4Config(), view=view_of(names, "self_attn.k_proj")).decide_all(names)
    assert caught.value.seen == "q_proj, v_proj quantised; k_proj kept"
