"""A torch_npu for tests: the operators that are called, by CANN's documented formulas, on a CPU.

It is strict where the device's C++ is: shapes, dtypes, numbers of dtypes, contiguity. What the device leaves
uninitialised is poison here. FRACTAL_NZ is the permutation of bytes that CANN documents, so that codes in the wrong
format give wrong results. The arithmetic is written from the formulas, one value after the other, and shares no code
with the package that is tested.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

FP4, E8M0, BF16, FP16, FP32 = 296, 293, 15, 5, 6
VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
DTYPES = {BF16: torch.bfloat16, FP16: torch.float16, FP32: torch.float32}
ROWS, BYTES = 16, 32  # a fractal of int8


def refuse(condition: bool, what: str) -> None:
    """Raise what the C++ raises."""
    if condition:
        raise RuntimeError(f"emulated torch_npu: {what}")


def round_codes(values: Tensor, mode: str) -> Tensor:
    """Round float64 values to E2M1 codes, saturating at 6."""
    refuse(mode not in ("rint", "round", "floor"), f"round_mode {mode}")
    size = values.abs().clamp(max=6.0)
    above = (size[..., None] > VALUES).sum(-1).clamp(max=7)  # the first value that is not smaller
    below = torch.where(VALUES[above] == size, above, (above - 1).clamp(min=0))
    middle = (VALUES[below] + VALUES[above]) / 2
    up = size > middle
    if mode == "round":
        up |= size == middle
    elif mode == "rint":
        up |= (size == middle) & (below % 2 == 1)
    else:
        up = torch.zeros_like(up)
    codes = torch.where(up, above, below).to(torch.uint8)
    return codes | (torch.signbit(values).to(torch.uint8) << 3)


def packed(codes: Tensor) -> Tensor:
    """Put two codes into a byte, the first one low."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def blocks_of(x: Tensor, size: int) -> Tensor:
    """Cut the last axis into blocks, the last one filled with zeros."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))


def one_level(x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Return codes [.., k/2] and scale pairs [.., ceil(ceil(k/32)/2), 2] of values in float64."""
    cut = blocks_of(x, 32)
    finite = torch.isfinite(cut).all(-1)
    amax = torch.where(finite, cut.abs().amax(-1), 0.0)
    exponent = (torch.frexp(amax)[1] - 1 - 2).to(torch.float64)  # floor(log2 amax) - 2
    exponent = torch.where(amax == 0, -127.0, exponent).clamp(-127, 127)
    values = torch.where(finite[..., None], cut * torch.exp2(-exponent)[..., None], 0.0)
    codes = round_codes(values, mode)
    codes = torch.where(finite[..., None], codes, 0).flatten(-2)[..., : x.shape[-1]]
    scales = torch.where(finite, exponent + 127, 255).to(torch.uint8)
    pairs = torch.nn.functional.pad(scales, (0, scales.shape[-1] % 2))  # an odd count is filled with zero
    return packed(codes), pairs.unflatten(-1, (-1, 2))


def check_input(x: Tensor) -> None:
    refuse(x.dtype not in (torch.bfloat16, torch.float16), f"input of {x.dtype}")
    refuse(not 1 <= x.dim() <= 7, f"input of {x.dim()} axes")
    refuse(x.shape[-1] % 2 == 1, "the last dim of input must be divisible by 2")


def npu_dynamic_mx_quant(
    input: Tensor,
    *,
    axis: int = -1,
    round_mode: str = "rint",
    dst_type: int = FP4,
    block_size: int = 32,
    scale_alg: int = 0,
    dst_type_max: float = 0.0,
    max_low_bound: float = 0.0,
) -> tuple[Tensor, Tensor]:
    check_input(input)
    refuse(axis not in (-1, input.dim() - 1), f"axis {axis}: only the last is emulated")
    refuse(
        type(dst_type) is not int or dst_type != FP4,
        f"dst_type {dst_type}: the C++ halves the last axis for {FP4} alone",
    )
    refuse(block_size != 32 or scale_alg != 0, "only blocks of 32 and scale_alg 0 are emulated")
    return one_level(input.double(), round_mode)


def npu_dynamic_dual_level_mx_quant(
    input: Tensor, *, smooth_scale: Tensor | None = None, round_mode: str = "rint"
) -> tuple[Tensor, Tensor, Tensor]:
    check_input(input)
    refuse(smooth_scale is not None, "smooth_scale is not supported currently")
    groups = blocks_of(input.double(), 512)
    amax = torch.where(torch.isfinite(groups), groups.abs(), 0.0).amax(-1)
    sixth = torch.tensor(0x3E2AAAAB, dtype=torch.int32).view(torch.float32).double()
    level0 = (amax * sixth).float()
    level0 = torch.where(level0 < 2.0**-126, 0.0, level0)
    quotient = groups / level0.double()[..., None]
    zeros = torch.copysign(torch.zeros_like(groups), groups)
    quotient = torch.where((level0 == 0)[..., None] & torch.isfinite(groups), zeros, quotient)
    left = quotient.float().to(input.dtype).double().flatten(-2)[..., : input.shape[-1]]
    codes, scales = one_level(left, round_mode)
    return codes, level0, scales


def tiles(rows: int, width: int) -> Tensor:
    """Return for each place of FRACTAL_NZ the index in rows: [width/32, rows/16, 16, 32], flattened."""
    index = torch.arange(rows * width).view(rows // ROWS, ROWS, width // BYTES, BYTES)
    return index.permute(2, 0, 1, 3).flatten()


def npu_format_cast(
    self: Tensor, acl_format: int, *, customize_dtype: object = None, input_dtype: object = None
) -> Tensor:
    refuse(self.dtype is not torch.int8 or self.dim() != 2, f"{self.dtype} with {self.dim()} axes")
    refuse(not self.is_contiguous(), "a tensor that is not contiguous")
    rows, width = self.shape
    # The device keeps the filling of its tiles to itself; the bytes here have no room for it.
    whole = tiles(math.ceil(rows / ROWS) * ROWS, math.ceil(width / BYTES) * BYTES)
    row, column = whole // (math.ceil(width / BYTES) * BYTES), whole % (math.ceil(width / BYTES) * BYTES)
    keep = (row < rows) & (column < width)
    order = (row * width + column)[keep]
    flat = self.flatten()
    if acl_format == 29:
        refuse(customize_dtype is not torch.int8, f"customize_dtype {customize_dtype}")
        return flat[order].view(rows, width)
    refuse(acl_format != 2, f"format {acl_format}")
    back = torch.empty_like(flat)
    back[order] = flat
    return back.view(rows, width)


def widened(codes: Tensor, scales: Tensor) -> Tensor:
    """Return float64 [.., k] of codes uint8 [.., k/2] and scales uint8 [.., k/64, 2]."""
    both = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    values = VALUES[(both & 7).long()] * torch.where(both >= 8, -1.0, 1.0)
    factors = torch.exp2(scales.flatten(-2).double() - 127)
    factors = torch.where(scales.flatten(-2) == 255, torch.nan, factors)
    return (values.unflatten(-1, (-1, 32)) * factors[..., : values.shape[-1] // 32, None]).flatten(-2)


def finish(sums: Tensor, bias: Tensor | None, output_dtype: int) -> Tensor:
    refuse(output_dtype not in DTYPES, f"output_dtype {output_dtype}")
    if bias is not None:
        refuse(
            bias.dtype is not torch.float32 or bias.shape != sums.shape[-1:],
            f"bias {bias.dtype} {tuple(bias.shape)}",
        )
        sums = sums + bias.double()
    return sums.float().to(DTYPES[output_dtype])


def turned(tensor: Tensor) -> bool:
    """Say whether the first two axes of a contiguous tensor were swapped."""
    return (
        tensor.transpose(-2, -1).is_contiguous()
        if tensor.dim() == 2
        else tensor.transpose(0, 1).is_contiguous()
    )


def npu_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    scale_dtype: int | None = None,
    group_sizes: list[int] | None = None,
    y_scale: Tensor | None = None,
) -> Tensor:
    refuse(
        (x1_dtype, x2_dtype, scale_dtype, pertoken_scale_dtype) != (FP4, FP4, E8M0, E8M0), "numbers of dtypes"
    )
    refuse(
        group_sizes != [1, 1, 32] or offset is not None or y_scale is not None, f"group_sizes {group_sizes}"
    )
    refuse(output_dtype is None, "output_dtype must be given: None is int8")
    refuse(pertoken_scale is None, "pertoken_scale must be given")
    assert output_dtype is not None and pertoken_scale is not None
    tensors = (x1, x2, scale, pertoken_scale)
    refuse(any(t.dtype is not torch.uint8 for t in tensors), "codes and scales are uint8")
    refuse(not x1.is_contiguous() or not pertoken_scale.is_contiguous(), "x1 and its scales are contiguous")
    refuse(not turned(x2) or not turned(scale), "x2 and scale are transposed views, both")
    (m, half), (other, n) = x1.shape, x2.shape
    refuse(half != other or half % 32 != 0, f"x1 {tuple(x1.shape)}, x2 {tuple(x2.shape)}")
    refuse(tuple(scale.shape) != (half // 32, n, 2), f"scale {tuple(scale.shape)}")
    refuse(tuple(pertoken_scale.shape) != (m, half // 32, 2), f"pertoken_scale {tuple(pertoken_scale.shape)}")
    sums = widened(x1, pertoken_scale) @ widened(x2.t(), scale.transpose(0, 1)).T
    return finish(sums, bias, output_dtype)


def npu_dual_level_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    x1_level0_scale: Tensor,
    x2_level0_scale: Tensor,
    x1_level1_scale: Tensor,
    x2_level1_scale: Tensor,
    *,
    bias: Tensor | None = None,
    output_dtype: int = BF16,
) -> Tensor:
    refuse(x1.dtype is not torch.uint8 or x2.dtype is not torch.int8, f"x1 {x1.dtype}, x2 {x2.dtype}")
    refuse(output_dtype not in (BF16, FP16), f"output_dtype {output_dtype}")
    (m, half), n = x1.shape, x2.shape[0]
    groups, pairs = math.ceil(half / 256), math.ceil(half / 32)
    wanted = {
        "x1": (x1, (m, half)),
        "x2": (x2, (n, half)),
        "x1_level0_scale": (x1_level0_scale, (m, groups)),
        "x2_level0_scale": (x2_level0_scale, (groups, n)),
        "x1_level1_scale": (x1_level1_scale, (m, pairs, 2)),
        "x2_level1_scale": (x2_level1_scale, (n, pairs, 2)),
    }
    for name, (tensor, shape) in wanted.items():
        refuse(
            tuple(tensor.shape) != shape or not tensor.is_contiguous(),
            f"{name} {tuple(tensor.shape)}, not {shape}",
        )
    refuse(
        any(s.dtype is not torch.float32 for s in (x1_level0_scale, x2_level0_scale)), "level 0 is float32"
    )
    refuse(any(s.dtype is not torch.uint8 for s in (x1_level1_scale, x2_level1_scale)), "level 1 is uint8")
    codes = npu_format_cast(x2, 2).view(torch.uint8)
    left, right = (
        blocks_of(widened(*pair), 512) for pair in ((x1, x1_level1_scale), (codes, x2_level1_scale))
    )
    sums = torch.zeros(m, n, dtype=torch.float64)
    for group in range(groups):
        outer = x1_level0_scale[:, group, None].double() * x2_level0_scale[group].double()
        sums += (left[:, group] @ right[:, group].T) * outer
    return finish(sums, bias, output_dtype)


def npu_grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    *,
    bias: list[Tensor] | None = None,
    scale: list[Tensor] | None = None,
    per_token_scale: list[Tensor] | None = None,
    group_list: Tensor | None = None,
    split_item: int = 0,
    group_type: int | None = None,
    group_list_type: int = 0,
    output_dtype: int | None = None,
    x_dtype: int | None = None,
    weight_dtype: int | None = None,
    scale_dtype: int | None = None,
    per_token_scale_dtype: int | None = None,
) -> list[Tensor]:
    refuse(
        (x_dtype, weight_dtype, scale_dtype, per_token_scale_dtype) != (FP4, FP4, E8M0, E8M0),
        "numbers of dtypes",
    )
    refuse(
        (split_item, group_type, group_list_type) != (3, 0, 1),
        "only one result, cut along m by counts, is emulated",
    )
    refuse(scale is None or per_token_scale is None or group_list is None, "operands")
    assert (
        scale is not None
        and per_token_scale is not None
        and group_list is not None
        and output_dtype is not None
    )
    (rows,), (w,), (ws,), (xs,) = x, weight, scale, per_token_scale
    refuse(any(t.dtype is not torch.uint8 for t in (rows, w, ws, xs)), "codes and scales are uint8")
    experts, half, n = w.shape
    refuse(
        not w.transpose(1, 2).is_contiguous() or not ws.transpose(1, 2).is_contiguous(),
        "weights are transposed views",
    )
    refuse(rows.shape[1] != half or half % 32 != 0, f"x {tuple(rows.shape)}, weight {tuple(w.shape)}")
    refuse(tuple(ws.shape) != (experts, half // 32, n, 2), f"scale {tuple(ws.shape)}")
    refuse(tuple(xs.shape) != (len(rows), half // 32, 2), f"per_token_scale {tuple(xs.shape)}")
    refuse(
        group_list.dtype is not torch.int64 or tuple(group_list.shape) != (experts,),
        f"group_list {group_list}",
    )
    out = torch.full(
        (len(rows), n), torch.nan, dtype=DTYPES[output_dtype]
    )  # rows of no group stay as they were
    start = 0
    for expert, count in enumerate(group_list.tolist()):
        part = slice(start, start + count)
        right = widened(w[expert].T, ws[expert].transpose(0, 1))
        out[part] = finish(
            widened(rows[part], xs[part]) @ right.T, None if bias is None else bias[0][expert], output_dtype
        )
        start += count
    refuse(start > len(rows), "group_list counts more rows than there are")
    return [out]


def module() -> ModuleType:
    """Return it as the module ``torch_npu``."""
    made = ModuleType("torch_npu")
    for function in (
        npu_dynamic_mx_quant,
        npu_dynamic_dual_level_mx_quant,
        npu_format_cast,
        npu_quant_matmul,
        npu_dual_level_quant_matmul,
        npu_grouped_matmul,
    ):
        setattr(made, function.__name__, function)
    return made
