"""By which rule torch_npu's single-level quantizer makes codes and scales, as profiles of ``mxfp4``.

``npu_dynamic_mx_quant`` with ``scale_alg=0``: the scale is 2^(floor(log2 amax) - 2), and below the range of E8M0 it
saturates at byte 0, which blocks of zeros have, too. Its ``round_mode`` decides ties: ``rint`` to even, ``round`` away
from zero. As documented by CANN; not compared with a device. The rules of the two-level quantizer are the core's
profiles ``ascend``, ``ascend-round`` and ``ascend-floor`` of ``mxfp4-dual``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mxfp4_core.arithmetic import MXFP4_DUAL, Profile


def _single(name: str, dual: str, mode: str) -> Profile:
    """Return the inner level of a profile of two levels, as a profile of its own."""
    peer = f"CANN DynamicMxQuant as documented, round_mode {mode}; not compared with a device"
    return replace(MXFP4_DUAL.resolve(dual), name=name, peer=peer, level0=None)


SINGLE: Final = _single("ascend-single", "ascend", "rint")
SINGLE_ROUND: Final = _single("ascend-single-round", "ascend-round", "round")

__all__ = ["SINGLE", "SINGLE_ROUND"]
