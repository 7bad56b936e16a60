"""MXFP4 in transformers: weights are quantised while ``from_pretrained`` reads them.

    import mxfp4_transformers
    from transformers import AutoModelForCausalLM

    config = mxfp4_transformers.Mxfp4Config()
    model = AutoModelForCausalLM.from_pretrained("path/to/bf16", quantization_config=config)
    print(mxfp4_transformers.summary(model))

Importing the package registers the quantizer, and that is all it needs: a checkpoint that was saved with MXFP4
weights then loads without a config.
"""

from mxfp4_transformers import _release, compat  # noqa: F401 - in this order: other releases fail in the second
from mxfp4_transformers.config import METHOD, Mxfp4CoreConfig
from mxfp4_transformers.loading import from_pretrained
from mxfp4_transformers.quantizer import Mxfp4Quantizer
from mxfp4_transformers.refitting import refit
from mxfp4_transformers.saving import save
from mxfp4_transformers.words import summary

Mxfp4Config = Mxfp4CoreConfig

compat.register(METHOD, Mxfp4CoreConfig, Mxfp4Quantizer)

__all__ = ["METHOD", "Mxfp4Config", "Mxfp4Quantizer", "from_pretrained", "refit", "save", "summary"]
