import rocm_strict


def fused_moe_mxfp4(
    A, B, C, A_scale, B_scale, A_mx_scale, B_mx_scale, topk_weights, topk_ids, sorted_token_ids, expert_ids,
    num_tokens_post_padded, mul_routed_weight, top_k, swizzle_mx_a, swizzle_mx_b, config, compute_type,
):  # fmt: skip
    rocm_strict.check(
        topk_weights.stride(1) == 1 and sorted_token_ids.stride(0) == 1, "strides of the tables"
    )
    rocm_strict.check(bool((A_scale == 1).all()) and len(B_scale) == len(B), "scales of whole tensors")
    rocm_strict.check(not (swizzle_mx_a or swizzle_mx_b), "scales are not swizzled here")
    rocm_strict.fused_moe_mxfp4(
        A, B, C, A_mx_scale, B_mx_scale, topk_ids, sorted_token_ids, expert_ids, num_tokens_post_padded, top_k,
        config, compute_type, mul_routed_weight,
    )  # fmt: skip
