"""The provider ``triton``: what our own kernels take, and the way from the core's calls to their operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from mxfp4_core.arithmetic import padded
from mxfp4_core.backend import (
    Backend,
    Choice,
    Layout,
    Matrix,
    No,
    Numerics,
    Packed,
    Problem,
    Rank,
    Routes,
    Verdict,
    Yes,
    tabulate,
    torch_build,
)
from mxfp4_petit.devices import COMPILED, MADE_FOR, importable, listed
from mxfp4_petit.portable import interpreter
from mxfp4_petit.portable.sizes import EXTREME, MOST_EXPERTS, SIZE_MAX, WIDE, WIDEN_FROM, layout_id, tile_of
from mxfp4_petit.portable.tiles import linear_tile, moe_tiles

if TYPE_CHECKING:
    from torch import Tensor

_MOST: Final = 16384  # tokens in the table of choices


class PortableProvider(Backend):
    """W4A16 and W8A16 linear and MoE in Triton, on any GPU that it was compiled for."""

    name = "petit"
    description = "Triton kernels of our own: W4A16 linear and MoE, weights widened in registers"
    features = frozenset(
        {
            *("linear", "moe", "bias", "expert-map", "gate:silu", "gate:clamped", "rows:interleaved"),
            *("gate:gelu", "gate:gelu_tanh", "gate:relu", "gate:relu2", "gate:none"),
            *("moe:shared-experts", "moe:tokens:batched", "moe:tokens:masked"),
            *("dtype:bfloat16", "dtype:float16", "format:mxfp8"),
        }
    )
    numerics = Numerics()
    automatic_on = frozenset(f"hip:{arch}" for arch in MADE_FOR)

    def supports(self, problem: Problem) -> Verdict:
        """Accept the devices of ``COMPILED`` and sizes that 32 bits hold; see ``Backend.supports``."""
        return _device(problem) or _sizes(problem) or self._yes(problem)

    def _yes(self, problem: Problem) -> Yes:
        note = "Triton kernels, weights are widened in registers"
        if problem.device.type == "cpu":
            note = "in Triton's interpreter: for tests, slow"
        elif problem.device.arch not in (*MADE_FOR, "sm_90"):
            note += f"; compiled for {problem.device.arch}, run on sm_90 only"
        return Yes(
            note,
            temporary_bytes=_temporary(problem),
            rank=Rank.PORTABLE,
            provider="triton",
            layout=layout_id(_pairs(problem), _wide(problem)),
            automatic=_automatic(problem),
        )

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Return the layout of all weights of a format on this type of device."""
        from mxfp4_petit.portable.layout import PortableLayout

        return PortableLayout(_pairs(problem), _wide(problem))

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute ``x @ weight.T + bias``; see ``Backend.linear``."""
        return _ops().linear(x, *_weight(weight), _pairs(problem), _wide(problem))

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Compute the weighted sum over the chosen experts; see ``Backend.moe``. Ids out of range are empty slots."""
        return _ops().moe(
            *(x, *_weight(gate_up), *_weight(down)),
            *(routes.topk_ids, routes.topk_weights, routes.expert_map, routes.counts),
            *(problem.shared_experts, *problem.gate.arguments),
            *(_pairs(problem), _wide(problem)),
        )

    def choices(self, problem: Problem) -> Sequence[Choice]:
        """List the tiles for each number of tokens."""

        def one(m: int) -> tuple[str, dict[str, int | str]]:
            if problem.op == "linear":
                if _widens(problem, m):
                    return "torch.matmul", {"weight": "widened in memory, if no scale or code is extreme"}
                tile = linear_tile(m, problem.n, padded(problem.k, tile_of(_pairs(problem))))
                return "triton", {"tile_tokens": tile.tokens, "tile_rows": tile.rows, "splits": tile.split}
            first, second = moe_tiles(m * problem.top_k, problem.stacked)
            rows = {"gate_up_rows": first.rows, "down_rows": second.rows}
            return "triton", {"tile_tokens": first.tokens, **rows}

        return tabulate(one, _MOST)


def _automatic(problem: Problem) -> bool | None:
    """Say yes for weights of 8 bits on every GPU: this project has no kernel that is made for them there."""
    gpu = problem.device.type in COMPILED and problem.device.arch not in MADE_FOR
    return True if gpu and _wide(problem) else None


def _device(problem: Problem) -> No | None:
    device = problem.device
    if device.type == "cpu":
        if interpreter.active() and importable("triton"):
            return None
        return No(
            f"the device is {device}, the kernels run on GPUs",
            "use the backend of this device; to try the kernels on a CPU set TRITON_INTERPRET=1 before Python starts",
        )
    compiled = COMPILED.get(device.type)
    if compiled is None:
        return No(
            f"the device is {device}, the kernels are for hip and cuda", "use the backend of this device"
        )
    if device.arch not in compiled:
        return No(
            f"the architecture is {device.arch}, the kernels were compiled for {listed(compiled)}",
            "name the backend 'reference', which runs anywhere",
        )
    build = torch_build()
    here = build is not None and (build.hip if device.type == "hip" else build.cuda)
    if here and not importable("triton"):  # else the question is about another machine
        return No("Triton is not installed, and compiles the kernels", "pip install 'triton>=3.4'")
    return None


def _sizes(problem: Problem) -> No | None:
    rows = problem.gate.rows * problem.n if problem.op == "moe" else problem.n
    slots = (problem.m or 0) * max(problem.top_k + problem.shared_experts, 1)
    if max(rows, problem.k, slots) > SIZE_MAX:
        return No(
            f"n = {problem.n}, k = {problem.k}, m = {problem.m}: rows, columns and slots are counted in 32 bits",
            "cut the layer into shards, or the tokens into pieces",
        )
    if problem.op != "moe":
        return None
    if problem.stacked > MOST_EXPERTS or max(problem.total_experts, problem.top_k) > SIZE_MAX:
        return No(
            f"experts = {problem.stacked}, total_experts = {problem.total_experts}, top_k = {problem.top_k}: the "
            f"routing takes {MOST_EXPERTS} experts on a rank",
            "use expert parallelism",
        )
    if problem.gate.limit is not None and not problem.gate.limit >= 0:
        return No(f"limit = {problem.gate.limit}, a clamp needs limit >= 0", "check the model's swiglu_limit")
    return None


def _temporary(problem: Problem) -> int:
    """Return the bytes that a call allocates: partial sums, or the hidden state and the results of all slots."""
    if not problem.m:
        return 0
    n, k = problem.n, padded(problem.k, tile_of(_pairs(problem)))
    if problem.op == "linear":
        if _widens(problem, problem.m):
            return 2 * problem.n * k
        split = linear_tile(problem.m, n, k).split
        return 4 * split * problem.m * n if split > 1 else 0
    rows = problem.m * (1 if problem.tokens == "batched" else problem.top_k + problem.shared_experts)
    return 2 * rows * (padded(n, tile_of(_pairs(problem))) + k)


def _pairs(problem: Problem) -> bool:
    """Choose the variant of the layout: what is faster on NVIDIA's devices takes a detour through memory on AMD's."""
    return problem.device.type == "cuda"


def _wide(problem: Problem) -> bool:
    """Say whether codes have 8 bits."""
    return problem.format == WIDE


def _widens(problem: Problem, m: int) -> bool:
    """Say whether a linear is widened in memory; see ``compute.linear``, which also looks at the weight."""
    half = problem.dtype == "bfloat16"
    return problem.device.type == "cuda" and _wide(problem) and half and m >= WIDEN_FROM


def _weight(packed: Packed) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    tensors = packed.tensors
    scales = tensors.get("scales")
    return (
        tensors["codes"],
        tensors[EXTREME] if scales is None else scales,
        tensors.get("bias"),
        scales is not None,
    )


ops: Any = None
"""The module of the operators once one is called: verdicts are given without torch, whose import takes a second."""


def _ops() -> Any:
    global ops
    if ops is None:
        from mxfp4_petit.portable import ops as loaded

        ops = loaded
    return ops


__all__ = ["PortableProvider"]
