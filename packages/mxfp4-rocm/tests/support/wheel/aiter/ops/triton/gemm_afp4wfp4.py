import rocm_strict
import torch


def gemm_afp4wfp4(x, w, x_scales, w_scales, dtype=torch.bfloat16, y=None, config=None):
    return rocm_strict.gemm_afp4wfp4(x, w, x_scales, w_scales, dtype)


def gemm_afp4wfp4_preshuffled_weight_scales(
    x, w, x_scales, w_scales, dtype=torch.bfloat16, y=None, config=None, use_aot=True
):
    return rocm_strict.preshuffled(x, w, x_scales, w_scales, dtype)
