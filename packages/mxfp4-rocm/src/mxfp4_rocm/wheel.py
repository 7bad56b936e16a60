"""What the wheel that was proven can be called with, frozen: ``tests/test_contract.py`` compares it with the wheel."""

from __future__ import annotations

from typing import Final

from mxfp4_rocm.contract import Contract, Found

_TRITON = "aiter.ops.triton"

CONTRACT: Final = Contract(
    {
        "gemm_a4w4": Found(
            "aiter.ops.gemm_op_a4w4",
            "gemm_a4w4",
            ("A", "B", "A_scale", "B_scale", "out", "bias", "alpha", "beta", "bpreshuffle"),
        ),
        "gemm_afp4wfp4": Found(
            f"{_TRITON}.gemm_afp4wfp4",
            "gemm_afp4wfp4",
            ("x", "w", "x_scales", "w_scales", "dtype", "y", "config"),
        ),
        "gemm_afp4wfp4_preshuffle": Found(
            f"{_TRITON}.gemm_afp4wfp4",
            "gemm_afp4wfp4_preshuffled_weight_scales",
            ("x", "w", "x_scales", "w_scales", "dtype", "y", "config", "use_aot"),
        ),
        "fused_moe_mxfp4": Found(
            f"{_TRITON}.moe_op_mxfp4",
            "fused_moe_mxfp4",
            (
                *(
                    "A",
                    "B",
                    "C",
                    "A_scale",
                    "B_scale",
                    "A_mx_scale",
                    "B_mx_scale",
                    "topk_weights",
                    "topk_ids",
                ),
                *("sorted_token_ids", "expert_ids", "num_tokens_post_padded", "mul_routed_weight", "top_k"),
                *("swizzle_mx_a", "swizzle_mx_b", "config", "compute_type"),
            ),
        ),
        "fused_moe": Found(
            "aiter.fused_moe",
            "fused_moe",
            (
                *("hidden_states", "w1", "w2", "topk_weight", "topk_ids", "expert_mask", "activation"),
                *("quant_type", "doweight_stage1", "w1_scale", "w2_scale", "a1_scale", "a2_scale"),
                *("block_size_M", "num_local_tokens", "moe_sorting_dispatch_policy", "dtype", "hidden_pad"),
                *("intermediate_pad", "bias1", "bias2"),
            ),
        ),
        "dynamic_mxfp4_quant": Found(f"{_TRITON}.quant", "dynamic_mxfp4_quant", ("x", "scaling_mode")),
        "torch_to_triton_dtype": Found(f"{_TRITON}.utils.types", "torch_to_triton_dtype"),
        "QuantType": Found("aiter.ops.enum", "QuantType"),
        "ActivationType": Found("aiter.ops.enum", "ActivationType"),
    }
)
"""amd-aiter 0.1.7.post2.dev18."""

__all__ = ["CONTRACT"]
