"""MXFP4 on Ascend A5: linear and MoE with quantised activations, one or two levels of scales, msmodelslim checkpoints.

Importing it touches no device and never imports torch_npu, which breaks ``import torch`` where CANN is missing.
"""

from mxfp4_npu.backend import backend

__all__ = ["backend"]
