"""The shipped suite on every format of the core, against its judge."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mxfp4_core.arithmetic import MXFP4, MXFP4_DUAL, MXFP8, reference
from mxfp4_core.arithmetic.reference import dual, mxfp8
from mxfp4_core.testing import FormatConformance


class TestSingle(FormatConformance):
    format_name = "mxfp4"

    def reference(self, weight: torch.Tensor, profile: str) -> Mapping[str, torch.Tensor]:
        codes, scales = reference.quantize(weight, MXFP4.resolve(profile))
        return {"codes": codes, "scales": scales}


class TestDual(FormatConformance):
    format_name = "mxfp4-dual"

    def reference(self, weight: torch.Tensor, profile: str) -> Mapping[str, torch.Tensor]:
        codes, scales, level0 = dual.quantize(weight, MXFP4_DUAL.resolve(profile))
        return {"codes": codes, "scales": scales, "level0": level0}


class TestMxfp8(FormatConformance):
    format_name = "mxfp8"

    def reference(self, weight: torch.Tensor, profile: str) -> Mapping[str, torch.Tensor]:
        codes, scales = mxfp8.quantize(weight, MXFP8.resolve(profile))
        return {"codes": codes, "scales": scales}


class TestSingleInputScale(FormatConformance):
    format_name = "mxfp4+input_scale"


class TestDualInputScale(FormatConformance):
    format_name = "mxfp4-dual+input_scale"


class TestMxfp8InputScale(FormatConformance):
    format_name = "mxfp8+input_scale"
