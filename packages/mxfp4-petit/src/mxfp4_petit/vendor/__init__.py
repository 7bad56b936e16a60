"""The kernels of petit-kernel, which is a package of others: CDNA2 and CDNA3, dense."""
