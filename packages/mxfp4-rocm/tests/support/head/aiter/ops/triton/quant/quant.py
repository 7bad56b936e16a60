import rocm_strict


def dynamic_mxfp4_quant(x, scaling_mode="even"):
    return rocm_strict.dynamic_mxfp4_quant(x, "aiter-triton")
