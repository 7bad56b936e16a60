"""CUDA C++ sources of the SM90 kernels, and what compiles, caches and launches them."""
