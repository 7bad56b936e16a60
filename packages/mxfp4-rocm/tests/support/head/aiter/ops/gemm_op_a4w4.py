import rocm_strict
import torch


@rocm_strict.guarded
def gemm_a4w4(
    A, B, A_scale, B_scale, bias=None, dtype=torch.bfloat16, alpha=1.0, beta=0.0, bpreshuffle=True,
    apreshuffle=False, global_A_scale=None, global_B_scale=None,
):  # fmt: skip
    rocm_strict.check(bias is None and dtype == torch.bfloat16, "the bias of gemm_a4w4 is a matrix")
    return rocm_strict.gemm_a4w4(A, B, A_scale, B_scale, bpreshuffle)
