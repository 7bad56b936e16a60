"""Our own kernels, in Triton: any GPU that Triton compiles for."""
