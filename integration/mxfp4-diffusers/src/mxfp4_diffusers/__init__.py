"""MXFP4 in diffusers: weights are quantised while ``from_pretrained`` reads them.

    import mxfp4_diffusers
    from diffusers import WanTransformer3DModel

    config = mxfp4_diffusers.Mxfp4Config()
    model = WanTransformer3DModel.from_pretrained("path/to/transformer", quantization_config=config)
    print(mxfp4_diffusers.summary(model))

Importing the package registers the quantizer, and that is all it needs: a checkpoint that was saved with MXFP4
weights, by whom ever, then loads without a config.
"""

from mxfp4_core.dialects import names
from mxfp4_diffusers import compat
from mxfp4_diffusers.config import METHOD, Mxfp4CoreConfig, machine
from mxfp4_diffusers.quantizer import Mxfp4Quantizer
from mxfp4_diffusers.steps import precise_steps
from mxfp4_diffusers.words import sensitivities, summary

Mxfp4Config = Mxfp4CoreConfig

compat.check_version()
compat.register(METHOD, Mxfp4CoreConfig, Mxfp4Quantizer)
for _name in names():
    compat.register_free(_name, Mxfp4CoreConfig, Mxfp4Quantizer)

__all__ = ["METHOD", "Mxfp4Config", "Mxfp4Quantizer", "machine", "precise_steps", "sensitivities", "summary"]
