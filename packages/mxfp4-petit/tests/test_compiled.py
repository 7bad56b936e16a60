"""Our kernels compiled for AMD's chips, without any: to finished machine code, with no register spilled.

Every kernel for both chips, and every tile that is chosen for one of them: what spills on one spills on the other.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import pytest

from mxfp4_petit.portable.tiles import STAGES_HIP, Tile, exact_tile, linear_tile, moe_tiles

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mxfp4_petit.portable import kernels, routing_kernels

LDS = 64 << 10  # of a compute unit of CDNA2 and CDNA3
POINTERS = {
    "x": "bf16",
    "bias": "bf16",
    "out": "bf16",
    "hidden": "bf16",
    "results": "bf16",
    "weights": "fp32",
}
POINTERS |= {
    name: "i32" for name in ("codes", "scales", "block_expert", "block_pairs", "ids", "expert_map", "counts")
}
FLOATS = ("alpha", "limit", "up_offset")
GATED = {"INTERLEAVED": True, "LIMITED": True, "FUNCTION": "silu", "BIASED": True}
SPLIT = {"PARTIAL": True, "BIASED": True}
LINEAR = {linear_tile(m, 8192, 8192).tokens: linear_tile(m, 8192, 8192) for m in (1, 32, 64)}
PREFILL = linear_tile(4096, 8192, 8192)
EXPERTS = {size: moe_tiles(size * 64, 64) for size in (1, 16, 64)}


def compiled(
    kernel: Any, arch: str, tile: Tile | None = None, target: GPUTarget | None = None, **constants: object
) -> Any:
    """Compile as ``compute`` does on such a device: one of AMD's by its architecture, or another target."""
    if tile is not None:
        constants = {
            "BM": tile.tokens,
            "BN": tile.rows,
            "PAIRS": False,
            "PACKED": False,
            "FOLDED": True,
            "WIDE": False,
        } | constants
    names = kernel.arg_names
    types = {name: f"*{POINTERS[name]}" if name in POINTERS else "i32" for name in names}
    types |= dict.fromkeys(FLOATS, "fp32") | dict.fromkeys(constants, "constexpr")
    aligned = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): aligned for i, name in enumerate(names) if name in POINTERS or name == "k"},
    )
    options = {} if tile is None else {"num_warps": tile.warps, "num_stages": min(tile.stages, STAGES_HIP)}
    return triton.compile(source, target=target or GPUTarget("hip", arch, 64), options=options)


def check(made: Any, mfma: bool = True) -> None:
    """Read the metadata of the code object."""
    text = made.asm["amdgcn"]
    for what in ("vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"):
        found = re.findall(rf"\.{what}:\s+(\d+)", text)
        assert found and not any(map(int, found)), f"{what} {found}"
    assert made.metadata.shared <= LDS
    assert made.asm["hsaco"][:4] == b"\x7fELF"
    if mfma:
        found_dtypes = set(re.findall(r"v_mfma_f32_\d+x\d+x\d+_?(bf16)", text))
        assert found_dtypes == {"bf16"}, "the matrix cores do not multiply"


@pytest.mark.parametrize(
    ("arch", "tile", "constants"),
    [
        ("gfx942", LINEAR[16], SPLIT),
        ("gfx90a", LINEAR[32], SPLIT),
        ("gfx90a", LINEAR[64], SPLIT),
        ("gfx942", LINEAR[64], SPLIT | {"FOLDED": False}),
        ("gfx942", PREFILL, {"PARTIAL": False, "BIASED": True}),
        ("gfx90a", exact_tile(LINEAR[32]), SPLIT | {"FOLDED": False}),
        ("gfx942", LINEAR[16], SPLIT | {"WIDE": True}),
        ("gfx90a", LINEAR[32], SPLIT | {"WIDE": True}),
        ("gfx950", LINEAR[64], SPLIT | {"WIDE": True}),
        ("gfx90a", exact_tile(LINEAR[32]), SPLIT | {"WIDE": True, "FOLDED": False}),
        ("gfx942", LINEAR[64], SPLIT | {"WIDE": True, "FOLDED": False}),
    ],
    ids=str,
)
def test_linear(arch: str, tile: Tile, constants: dict[str, object]) -> None:
    check(compiled(kernels.linear_kernel, arch, tile, **constants))


@pytest.mark.parametrize(
    ("arch", "size", "wide"),
    [("gfx942", 1, False), ("gfx90a", 16, False), ("gfx942", 64, False), ("gfx90a", 16, True)],
    ids=str,
)
def test_gate_up(arch: str, size: int, wide: bool) -> None:
    check(compiled(kernels.gate_up_kernel, arch, EXPERTS[size][0], **GATED, WIDE=wide))


@pytest.mark.parametrize(("arch", "function"), [("gfx942", "gelu"), ("gfx90a", "gelu_tanh")])
def test_gate_up_of_other_functions(arch: str, function: str) -> None:
    check(
        compiled(kernels.gate_up_kernel, arch, EXPERTS[16][0], **GATED | {"FUNCTION": function}, WIDE=False)
    )


@pytest.mark.parametrize(
    ("arch", "size", "function"), [("gfx90a", 1, "relu2"), ("gfx942", 16, "gelu"), ("gfx942", 64, "silu")]
)
def test_up_without_a_gate(arch: str, size: int, function: str) -> None:
    check(compiled(kernels.up_kernel, arch, EXPERTS[size][0], FUNCTION=function, BIASED=True, WIDE=False))


@pytest.mark.parametrize(
    ("arch", "size", "wide"), [("gfx90a", 1, False), ("gfx942", 16, False), ("gfx942", 64, True)], ids=str
)
def test_down(arch: str, size: int, wide: bool) -> None:
    check(compiled(kernels.down_kernel, arch, EXPERTS[size][1], BIASED=True, WIDE=wide))


@pytest.mark.parametrize("arch", ["gfx90a", "gfx942"])
def test_what_multiplies_nothing(arch: str) -> None:
    table = {"MAPPED": True, "CHUNK": 1024}
    check(compiled(routing_kernels.count_kernel, arch, **table), mfma=False)
    check(compiled(routing_kernels.place_kernel, arch, **table, EXPERTS=128, BM=16), mfma=False)
    check(compiled(routing_kernels.combine_kernel, arch, MAPPED=True, SIZE=512), mfma=False)


@pytest.mark.parametrize("wide", [False, True], ids=["mxfp4", "mxfp8"])
@pytest.mark.parametrize("folded", [True, False], ids=["folded", "exact"])
def test_the_variant_for_nvidia_multiplies_pairs_and_its_sums_where_it_must(folded: bool, wide: bool) -> None:
    """For sm_90, whose numbers come two at a time out of one instruction; scales cost a multiplication or none."""
    variant = {"PAIRS": True, "PACKED": True, "FOLDED": folded, "WIDE": wide}
    target = GPUTarget("cuda", 90, 32)
    made = compiled(kernels.linear_kernel, "sm_90", LINEAR[64], target, **SPLIT, **variant)
    text = made.asm["ptx"]
    assert "wgmma" in text and text.count("fma.rn.bf16x2") == 32
    products = len(re.findall(r"\bfma\.rn\.f32\b", text))
    assert products == (0 if folded else 4 * 64 * 64 // 128)
    assert made.asm["cubin"][:4] == b"\x7fELF"


@pytest.mark.parametrize(
    ("tile", "what"), [(Tile(128, 256, 2, 1), "spill"), (Tile(128, 128, 8, 2), "<= 65536")]
)
def test_a_tile_that_is_too_large_is_seen(tile: Tile, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        check(compiled(kernels.linear_kernel, "gfx942", tile, PARTIAL=False, BIASED=True))
