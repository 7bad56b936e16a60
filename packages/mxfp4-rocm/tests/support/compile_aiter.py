"""Run by ``test_compile.py``: compile Triton kernels for AMD's GPUs, and print what the code contains as JSON.

Those of AITER that this package calls, and the core's quantizer, which it calls as well.

    python compile_aiter.py FOLDER_OF_THE_WHEEL ARCH KERNEL ...

It needs no GPU. What a kernel is compiled for is what the functions of this package launch it with.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import rocm_vendor
import triton
from triton import language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mxfp4_core.arithmetic.fast.triton import kernels

BLOCKS = {"BLOCK_SIZE_M": 32, "BLOCK_SIZE_N": 128, "GROUP_SIZE_M": 4}
GEMM = {
    **BLOCKS,
    "BLOCK_SIZE_K": 256,
    "NUM_KSPLIT": 1,
    "SPLITK_BLOCK_SIZE": 2048,
    "EVEN_K": True,
    "cache_modifier": None,
}
EXPERTS = {
    **BLOCKS, "BLOCK_SIZE_K": 128, "B_DTYPE_FORMAT": "e2m1", "EVEN_K": True, "MUL_ROUTED_WEIGHT": False, "top_k": 2,
    "compute_type": tl.float32, "SWIZZLE_MX_A": False, "SWIZZLE_MX_B": False, "NUM_XCDS": 8,
}  # fmt: skip
QUANTISER = {
    "BLOCK_SIZE_M": 32, "BLOCK_SIZE_N": 128, "NUM_ITER": 4, "NUM_STAGES": 2, "MXFP4_QUANT_BLOCK_SIZE": 32,
    "EVEN_M_N": False, "SCALING_MODE": 0,
}  # fmt: skip
POINTERS = {
    "x_ptr": "*bf16", "x_fp4_ptr": "*u8", "bs_ptr": "*u8", "c_ptr": "*bf16", "c_in_ptr": "*fp32", "c_out_ptr": "*bf16",
    "a_ptr": "*u8", "b_ptr": "*u8", "a_scales_ptr": "*u8", "b_scales_ptr": "*u8", "a_scale_ptr": "*fp32",
    "b_scale_ptr": "*fp32", "a_mx_scale_ptr": "*u8", "b_mx_scale_ptr": "*u8", "topk_weights_ptr": "*fp32",
    "sorted_token_ids_ptr": "*i32", "expert_ids_ptr": "*i32", "num_tokens_post_padded_ptr": "*i32",
}  # fmt: skip
"""Types of the arguments that are pointers."""

KERNELS: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {
    "gemm": ("_triton_kernels.gemm_afp4wfp4", "_gemm_afp4_wfp4_kernel", GEMM, {}),
    "preshuffled": (
        "_triton_kernels.gemm_afp4wfp4",
        "_gemm_afp4_wfp4_kernel_preshuffled_weight_scales",
        GEMM | {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64},
        {},
    ),
    "reduce": (
        "_triton_kernels.gemm_afp4wfp4",
        "_gemm_afp4_wfp4_reduce_kernel",
        {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "ACTUAL_KSPLIT": 4, "MAX_KSPLIT": 4},
        {},
    ),
    "quantiser": (
        "_triton_kernels.quant",
        "_dynamic_mxfp4_quant_kernel",
        QUANTISER,
        {},
    ),
    "experts-w4a4": (
        "_triton_kernels.moe_op_mxfp4",
        "_fused_moe_kernel_mxfp4",
        EXPERTS | {"A_DTYPE_FORMAT": "e2m1"},
        {},
    ),
    "experts-w4a16": (
        "_triton_kernels.moe_op_mxfp4",
        "_fused_moe_kernel_mxfp4",
        EXPERTS
        | {"A_DTYPE_FORMAT": "bf16", "a_mx_scale_ptr": None, "stride_amxm": None, "stride_amxk": None},
        {"a_ptr": "*bf16"},
    ),
}
"""Module, name, constants, and types of pointers that differ."""

OWN = {"FORMAT": "bf16", "TIES": "even", "ZEROS": "keep", "LIFT": False, "RUN": 16, "NB": 64}
OWN_TYPES = {"x": "*i32", "codes": "*i8", "scales": "*i8", "threshold": "*i32", "state": "*i32"}


def compile_one(name: str, arch: str) -> dict[str, object]:
    """Return what the machine code of a kernel contains."""
    if name == "own-quantizer":
        kernel, constants, types = kernels.portable_kernel, OWN, OWN_TYPES
    else:
        module, attribute, constants, types = KERNELS[name]
        kernel = getattr(rocm_vendor.module(module), attribute)
    function = kernel if hasattr(kernel, "arg_names") and hasattr(kernel, "src") else kernel.fn
    signature = {}
    for argument in function.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        else:
            signature[argument] = types.get(argument, POINTERS.get(argument, "i32"))
    source = ASTSource(function, signature, constants)
    made = triton.compile(
        source, target=GPUTarget("hip", arch, 64), options={"num_warps": 4, "num_stages": 2}
    )
    text = made.asm["amdgcn"]
    found = re.findall(r"\bv_(?:mfma\w+|smfma\w+)", text)
    spilled = re.search(r"\.vgpr_spill_count:\s*(\d+)", text)
    return {
        "matrix": sorted(set(found)),
        "spilled": int(spilled.group(1)) if spilled else None,
        "bytes": len(made.asm["hsaco"]),
    }


if __name__ == "__main__":
    rocm_vendor.install(Path(sys.argv[1]), sys.argv[2])
    print(json.dumps({name: compile_one(name, sys.argv[2]) for name in sys.argv[3:]}))
