"""Settings that all tests of the core share."""

from hypothesis import settings

# The first example of a test may compile kernels or import torch; a busy machine does the rest.
settings.register_profile("mxfp4", deadline=None)
settings.load_profile("mxfp4")
