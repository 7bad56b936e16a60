import rocm_strict


@rocm_strict.guarded
def gemm_a4w4(A, B, A_scale, B_scale, out, bias=None, alpha=1.0, beta=0.0, bpreshuffle=True):
    rocm_strict.check(bias is None, "the bias of gemm_a4w4 is a matrix")
    rocm_strict.check(out.shape[0] % 32 == 0 and out.dtype.itemsize == 2, f"out {tuple(out.shape)}")
    out.fill_(float("nan"))  # rows behind the tokens are never written
    out[: A.shape[0]] = rocm_strict.gemm_a4w4(A, B, A_scale, B_scale, bpreshuffle)
    return out
