"""Programs that nobody here wrote, and that read what is written here: ``nox -s clients``."""

PACKAGES = (
    "transformers==5.23.*", "accelerate", "compressed-tensors==0.20.*", "gguf==0.19.*", "torchao==0.18.*", "datasets",
    "py-cpuinfo", "threadpoolctl", "pandas", "scipy", "onnx", "ninja", "ml-dtypes", "joblib",
    "xllamacpp==2026.10.11549",
)  # fmt: skip
BARE = ("auto-round==0.16.1", "amd-quark==0.13", "onnxslim", "evaluate")
"""Installed without what they require: other releases of the above, or what needs a GPU."""

__all__ = ["BARE", "PACKAGES"]
