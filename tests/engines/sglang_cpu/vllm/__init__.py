"""Stands for a package from which SGLang imports on a CPU without AMX; the native path of each layer is taken."""
