"""The quantizer of ``mxfp4`` in Triton, for NVIDIA and AMD GPUs; nothing imports Triton before it is used."""
