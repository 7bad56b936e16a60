"""The shipped suite on every dialect of the core."""

from __future__ import annotations

from mxfp4_core.testing import DialectConformance
from mxfp4_core.testing.suite_dialect import LINEARS, STACKS, Stored

EXPERTS = "model.layers.0.mlp.experts."


class TestNative(DialectConformance):
    dialect_name = "mxfp4-core"
    formats = ("mxfp4", "mxfp4-dual", "mxfp8", "mxfp4+input_scale")
    weights = (
        *LINEARS,
        *STACKS,
        Stored("model.odd.weight", (8, 40)),
        Stored("model.turned.weight", (64, 96), True),
    )


class TestCompressedTensors(DialectConformance):
    dialect_name = "compressed-tensors"


class TestQuark(DialectConformance):
    dialect_name = "quark"


class TestGptOss(DialectConformance):
    dialect_name = "gpt-oss"
    model = {"model_type": "gpt_oss", "num_local_experts": 3}  # noqa: RUF012, read only
    weights = (
        Stored(f"{EXPERTS}gate_up_proj", (3, 192, 64), transposed=True, interleaved=True),
        Stored(f"{EXPERTS}down_proj", (3, 64, 96), transposed=True),
    )


class TestDeepSeekV4(DialectConformance):
    dialect_name = "deepseek-v4"
    model = {"model_type": "deepseek_v4"}  # noqa: RUF012, read only
    weights = (
        *(
            Stored(f"layers.0.ffn.experts.{e}.{w}.weight", (64, 96))
            for e in range(2)
            for w in ("w1", "w2", "w3")
        ),
        *STACKS,
    )


class TestGptOssOriginal(TestGptOss):
    dialect_name = "gpt-oss-original"


class TestAutoRound(DialectConformance):
    dialect_name = "auto-round"


class TestModelOpt(DialectConformance):
    dialect_name = "modelopt"
    settings = {"activation": "mxfp4"}  # noqa: RUF012, read only


class TestTorchAo(DialectConformance):
    dialect_name = "torchao"
    settings = {"activation": "mxfp4"}  # noqa: RUF012, read only


class TestTorchAoPlain(TestTorchAo):
    dialect_name = "torchao-plain"
