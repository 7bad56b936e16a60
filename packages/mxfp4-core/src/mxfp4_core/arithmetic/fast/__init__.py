"""The fast paths, on CPUs and on any torch device, each bit-equal to ``mxfp4_core.arithmetic.reference``."""
