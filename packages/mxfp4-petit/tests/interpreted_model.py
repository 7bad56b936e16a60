"""Run by ``test_models.py`` with TRITON_INTERPRET=1: a trained model by our kernels on a CPU, beside the reference."""

from __future__ import annotations

import sys
import warnings

import torch
from support_models import ROOT, from_pretrained, layouts, windows


def main(name: str) -> None:
    warnings.simplefilter("ignore")  # NumPy's where infinity is meant, and the interpreter's own
    torch.set_num_threads(1)
    path, ids = ROOT / "models" / name, windows(name, 2, 128)[:1, :1]
    options = {"petit": {"provider": "triton"}}
    model = from_pretrained(path, backend="petit", backend_options=options)
    reference = from_pretrained(path, backend="reference")
    assert layouts(model) == {"portable-k256"}
    with torch.inference_mode():
        found, wanted = model(ids).logits.double(), reference(ids).logits.double()
    error = float((found - wanted).norm() / wanted.norm())
    # Both round every result to bfloat16, at other places of a sum: some units of 2^-8 after all layers.
    assert error < 2e-2, error
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


if __name__ == "__main__":
    main(sys.argv[1])
