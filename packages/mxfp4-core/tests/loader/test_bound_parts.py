"""Sessions bound to modules whose weights are quantised already."""

from __future__ import annotations

import pytest
import torch
from bound_models import (
    E,
    K,
    N,
    places,
    session,
)
from loader_layers import weights
from torch import Tensor

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend.problem import GPT_OSS_SWIGLU
from mxfp4_core.errors import FormatError, LoadError, ShapeError
from mxfp4_core.loader import LoadSession, Region
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear
from mxfp4_core.testing.samples import random_x

# Parts that are quantised already.

FORMATS = ["mxfp4", "mxfp4+input_scale", "mxfp4-dual", "mxfp4-dual+input_scale", "mxfp8"]


def stored(shape: tuple[int, ...], name: str, seed: int = 0) -> MxTensor:
    made = quantize(weights(*shape, seed=seed), format=name, tail="pad")
    for part in get(name).parts:
        if part.operand == "input":
            made.parts[part.name].copy_(torch.arange(1.0, 1 + made.parts[part.name].numel()))
    return made


@pytest.mark.parametrize("name", FORMATS)
def test_parts_are_put_byte_for_byte(name: str) -> None:
    module = Mxfp4Experts(E, 48, 544, top_k=2, format=name, device="meta")
    opened = LoadSession()
    targets = opened.bind(module, prepare=False, exact=True)
    whole = {key: stored(tuple(target.shape), name) for key, target in targets.items()}
    block = get(name).block
    for key, tensor in whole.items():
        target = targets[key]
        for part in tensor.format.parts:
            data = tensor.parts[part.name]
            if part.operand == "input":
                target.put({part.name: data})
                continue
            for expert in range(E):
                for start in range(0, target.shape[-1], block):
                    stop = min(start + block, target.shape[-1])
                    region = Region((expert, expert + 1), (0, target.shape[1]), (start, stop))
                    end = target.format.physical_k(stop)
                    piece = data[expert][:, start // part.values : end // part.values]
                    target.put(
                        {part.name: piece.view(torch.float8_e8m0fnu) if part.name == "scales" else piece},
                        region,
                    )
    opened.close()
    state = module.state_dict()
    for matrix, key in module.matrices.items():
        for part, buffer in module.buffer_names(matrix).items():
            assert torch.equal(state[buffer].view(torch.uint8), whole[key].parts[part].view(torch.uint8)), (
                buffer
            )


def test_codes_without_scales_are_an_error_also_for_a_subset() -> None:
    module, opened = Mxfp4Linear(N, K, device="meta"), session("reference")
    target, tensor = opened.bind(module, exact=True)["weight"], stored((N, K), "mxfp4")
    target.put({"codes": tensor.codes})
    half = Region((0, 1), (0, 10), (0, K))
    target.put({"scales": tensor.scales[:10]}, half)
    with pytest.raises(LoadError, match="weight: scales: missing: rows 10:40"):
        opened.close()
    target.put({"scales": tensor.scales[10:]}, Region((0, 1), (10, N), (0, K)))
    opened.close()
    want, before = run_linear(module), places(module)
    opened.begin(subset=True)
    target.put({"codes": tensor.codes[:10]}, half)
    with pytest.raises(LoadError, match="scales: missing"):
        opened.close()
    assert torch.equal(run_linear(module), want) and places(module) == before


def run_linear(module: Mxfp4Linear) -> Tensor:
    return module(random_x(3, K))


def test_the_part_of_the_input_comes_with_those_of_the_weight() -> None:
    module, opened = Mxfp4Linear(N, K, format="mxfp4+input_scale", device="meta"), LoadSession()
    target, tensor = (
        opened.bind(module, exact=True, prepare=False)["weight"],
        stored((N, K), "mxfp4+input_scale"),
    )
    target.put({"codes": tensor.codes, "scales": tensor.scales})
    with pytest.raises(LoadError, match="input_scale: missing"):
        opened.close()
    target.put({"input_scale": tensor.input_scale})
    opened.close()
    with pytest.raises(ShapeError, match="input_scale"):
        target.put({"input_scale": tensor.input_scale[:32]})


def test_parts_that_do_not_fit_are_refused() -> None:
    opened = session("reference")
    target = opened.bind(Mxfp4Linear(N, K, device="meta"), exact=True)["weight"]
    tensor = stored((N, K), "mxfp4")
    with pytest.raises(ShapeError, match="blocks of 32"):
        target.put({"codes": tensor.codes[:, :8]}, Region((0, 1), (0, N), (0, 16)))
    with pytest.raises(ShapeError, match="codes of weight"):
        target.put({"codes": tensor.codes[1:]})
    with pytest.raises(FormatError, match="never converted"):
        target.put({"codes": tensor.codes.float()})
    with pytest.raises(FormatError, match="no part 'level0'"):
        target.put({"level0": tensor.codes})
    with pytest.raises(LoadError, match="its loader for the weight raised FormatError"):
        opened.close()
    target.put(tensor.parts)
    opened.close()


def test_put_twice_is_a_duplicate() -> None:
    opened = session("reference")
    target, tensor = (
        opened.bind(Mxfp4Linear(N, K, device="meta"), exact=True)["weight"],
        stored((N, K), "mxfp4"),
    )
    target.put(tensor.parts)
    target.put({"scales": tensor.scales})
    with pytest.raises(LoadError, match="scales: duplicate"):
        opened.close()


def test_quantised_and_stored_pieces_go_into_one_weight() -> None:
    module, opened = Mxfp4Linear(N, K, device="meta"), session("reference")
    target, source = opened.bind(module)["weight"], weights(N, K)
    stored_rows = quantize(source[:16], profile="quark")
    target.put(stored_rows.parts, Region((0, 1), (0, 16), (0, K)))
    target.quantize(source[16:], Region((0, 1), (16, N), (0, K)))
    opened.close()
    codes = module.state_dict()["weight"]
    assert torch.equal(codes, torch.cat([stored_rows.codes, quantize(source[16:]).codes]))


def test_k_of_a_stored_weight_may_end_inside_a_block() -> None:
    strict = LoadSession(Mxfp4Config(backend="reference"))
    with pytest.raises(ShapeError, match="cannot be sharded along k"):
        strict.bind(Mxfp4Linear(8, 70, device="meta"))
    module = Mxfp4Linear(8, 70, device="meta")
    opened = LoadSession(Mxfp4Config(backend="reference"))
    target = opened.bind(module, exact=True)["weight"]
    target.put(quantize(weights(8, 70), tail="pad").parts)
    opened.close()
    assert module(random_x(2, 70)).shape == (2, 8)


def test_gpt_oss_experts_are_refitted_in_any_order() -> None:
    built = Mxfp4Experts(E, N, K, top_k=2, gate=GPT_OSS_SWIGLU, device="meta")
    opened = session("emulated")
    targets = opened.bind(built)
    names = {"gate_up_proj": (E, 2 * N, K), "down_proj": (E, K, N)}
    for seed in (0, 1):
        for key, shape in names.items():
            targets[key].quantize(weights(*shape, seed=seed))
        opened.close()
        opened.begin()
    state = built.state_dict()
    assert all(
        torch.equal(state[key], quantize(weights(*s, seed=1), tail="pad").codes) for key, s in names.items()
    )
