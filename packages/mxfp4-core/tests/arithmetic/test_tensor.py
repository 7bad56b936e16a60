"""``MxTensor`` checks itself."""

import pytest
import torch

from mxfp4_core import MxTensor, quantize
from mxfp4_core.errors import FormatError


def parts(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(*shape, 32, dtype=torch.uint8), torch.ones(*shape, 2, dtype=torch.uint8)


@pytest.mark.parametrize("k", [33, 63, 64])
def test_logical_k_within_the_last_block(k: int) -> None:
    tensor = MxTensor(*parts(5), torch.Size((5, k)))
    assert tensor.physical_shape == (5, 64)
    assert tensor.dequantize().shape == (5, k)
    assert tensor.nbytes == 5 * 34


@pytest.mark.parametrize("shape", [(5, 32), (5, 65), (4, 64), (5, 2, 64), (64,), ()])
def test_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError):
        MxTensor(*parts(5), torch.Size(shape))


def test_codes_and_scales_must_belong_together() -> None:
    codes, scales = parts(5)
    with pytest.raises(FormatError, match="belong together"):
        MxTensor(codes, scales[:4], torch.Size((5, 64)))


def test_shape_may_be_any_sequence() -> None:
    assert MxTensor(*parts(5), [5, 64]).shape == torch.Size((5, 64))  # type: ignore[arg-type]


def test_repr_names_what_matters() -> None:
    text = repr(quantize(torch.ones(2, 64), profile="quark"))
    assert text == "MxTensor(shape=[2, 64], device='cpu', profile='quark', 68 bytes)"


def test_to_keeps_everything() -> None:
    tensor = quantize(torch.ones(2, 40), tail="pad")
    moved = tensor.to("meta")
    assert (moved.shape, moved.profile, moved.device.type) == (tensor.shape, tensor.profile, "meta")
