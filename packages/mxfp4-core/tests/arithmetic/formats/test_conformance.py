"""The shipped suite on every format of the core."""

from __future__ import annotations

from mxfp4_core.testing import FormatConformance


class TestSingle(FormatConformance):
    format_name = "mxfp4"


class TestDual(FormatConformance):
    format_name = "mxfp4-dual"


class TestMxfp8(FormatConformance):
    format_name = "mxfp8"


class TestInputScale(FormatConformance):
    format_name = "mxfp4-dual+input_scale"
