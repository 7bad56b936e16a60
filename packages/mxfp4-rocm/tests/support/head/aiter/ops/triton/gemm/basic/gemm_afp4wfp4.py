import rocm_strict
import torch


def gemm_afp4wfp4(x, w, x_scales, w_scales, dtype=torch.bfloat16, y=None, config=None, skip_reduce=False):
    return rocm_strict.gemm_afp4wfp4(x, w, x_scales, w_scales, dtype)


def gemm_afp4wfp4_preshuffle(
    x_fp4,
    w_preshuf,
    x_scales,
    w_scales,
    dtype=torch.bfloat16,
    y=None,
    config=None,
    use_aot=True,
    skip_reduce=False,
):
    return rocm_strict.preshuffled(x_fp4, w_preshuf, x_scales, w_scales, dtype)
