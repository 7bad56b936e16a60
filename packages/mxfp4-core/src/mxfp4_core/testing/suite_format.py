"""The conformance suite of a format: subclass it, name the format, and run pytest.

    class TestMine(FormatConformance):
        format_name = "mine"

A format decides its own arithmetic, so the suite judges values only against the ``reference`` that the subclass may
give: a method that makes the parts of a weight slowly. Beside that it judges what everything else relies on: parts that
belong together, blocks that can be quantised apart from each other, padding that is worth zero, and errors.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from mxfp4_core import MxTensor, dequantize, quantize, quantize_into
from mxfp4_core.arithmetic import Format, get_format
from mxfp4_core.errors import ConfigError, FormatError, Mxfp4Error, NonFiniteError, ShapeError
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear
from mxfp4_core.testing.suite_format_parts import PartsSuite, same

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class FormatConformance(PartsSuite):
    """Everything that a format must be right about.

    Attributes:
        format_name: name of the entry point.
    """

    format_name: ClassVar[str] = "mxfp4"

    @pytest.fixture
    def format(self) -> Format:
        """The format under test, from its entry point."""
        return get_format(self.format_name)

    def draw(self, format: Format, *rows: int, blocks: int = 2, seed: int = 0) -> Tensor:
        """Return a bfloat16 weight as models have them."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(*rows, blocks * format.block, generator=generator) / 8).to(torch.bfloat16)

    def test_members(self, format: Format) -> None:
        """It describes itself: names are unique, and each part divides the block."""
        assert format.name == self.format_name and format.parts and format.weight_parts
        names, suffixes = [p.name for p in format.parts], [p.suffix for p in format.parts]
        assert len(set(names)) == len(names) and len(set(suffixes)) == len(suffixes)
        assert suffixes[0] == "", (
            "a weight is known by its first part, which stands under the weight's own name"
        )
        assert all(name.isidentifier() for name in names)
        for part in format.parts:
            dtype = getattr(torch, part.dtype)
            assert isinstance(dtype, torch.dtype) and dtype.itemsize == part.itemsize
            assert part.values >= 1 and format.block % part.values == 0
            assert part.operand in ("weight", "input")
            assert all(getattr(torch, name).itemsize == part.itemsize for name in part.same)

    def test_profiles(self, format: Format) -> None:
        """Every profile that it lists is known by its name, the first one is the default, and no other is taken."""
        assert format.profiles and format.resolve().name == format.profiles[0]
        for name in format.profiles:
            assert format.resolve(name).name == name
        with pytest.raises(ConfigError) as caught:
            format.resolve("no profile has this name")
        assert format.profiles[0] in str(caught.value), "the error does not list the profiles"

    def test_there_is_one_object(self, format: Format) -> None:
        """Tensors are sent to other processes with their format."""
        assert pickle.loads(pickle.dumps(format)) is format
        made = quantize(self.draw(format, 3), format=format.name)
        again = pickle.loads(pickle.dumps(made))
        assert again.format is format and all(
            same(again.parts[name], made.parts[name]) for name in made.parts
        )

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_values_come_back(self, format: Format, dtype: torch.dtype) -> None:
        """Quantising and back is near the weight, twice the same, and leaves the weight alone."""
        weight = self.draw(format, 5, 6).to(dtype)
        before = weight.clone()
        allowed = [name for name in format.profiles if dtype in (format.resolve(name).dtypes or DTYPES)]
        for profile in allowed:
            made = quantize(weight, format=format.name, profile=profile)
            format.check(made.parts)
            assert made.format is format and made.profile == profile and made.shape == weight.shape
            assert made.nbytes == format.nbytes(weight.shape)
            values = dequantize(made, dtype=torch.float32)
            error = float((values - weight.float()).norm() / weight.float().norm())
            assert values.shape == weight.shape and error < 0.5, f"{profile}: relative error {error:.3g}"
            twice = quantize(weight, format=format.name, profile=profile)
            assert all(same(twice.parts[name], made.parts[name]) for name in made.parts)
        assert allowed and torch.equal(weight, before)

    def test_zeros_are_zeros(self, format: Format) -> None:
        """Zeros come back as zeros, and so does what padding consists of."""
        made = quantize(torch.zeros(2, format.block), format=format.name)
        assert not bool(dequantize(made, dtype=torch.float32).any())
        filled = format.empty((2, format.block))
        for part in format.parts:
            filled[part.name].copy_(torch.full(filled[part.name].shape, part.fill))
        assert not bool(format.dequantize(filled, torch.float32).any()), (
            "the fill of padding is not worth zero"
        )

    def test_pieces_give_what_the_whole_gives(self, format: Format) -> None:
        """Rows and whole blocks can be quantised apart from each other, into slices of parts that exist."""
        weight = self.draw(format, 6, blocks=3)
        whole, block = quantize(weight, format=format.name), format.block
        parts = format.empty(weight.shape)
        for rows in (slice(4, 6), slice(0, 4)):
            for first, last in ((1, 3), (0, 1)):
                piece = {
                    part.name: parts[part.name][
                        rows, first * block // part.values : last * block // part.values
                    ]
                    for part in format.weight_parts
                }
                cut = weight[rows, first * block : last * block]
                quantize_into(cut, piece, format=format.name)
        for part in format.weight_parts:
            assert same(parts[part.name], whole.parts[part.name]), f"{part.name} depends on other blocks"

    def test_a_tail_is_padded_exactly(self, format: Format) -> None:
        """K that ends inside a block is refused, or padded with zeros and cropped again."""
        weight = self.draw(format, 3)[:, :-3]
        with pytest.raises(ShapeError):
            quantize(weight, format=format.name)
        made = quantize(weight, format=format.name, tail="pad")
        whole = quantize(torch.nn.functional.pad(weight, (0, 3)), format=format.name)
        assert all(same(made.parts[name], whole.parts[name]) for name in made.parts)
        assert made.dequantize().shape == weight.shape

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
    def test_what_is_not_finite(self, format: Format, value: float) -> None:
        """It is refused by name, or makes NaN of its own row and blocks and of nothing else."""
        weight = self.draw(format, 3, blocks=3)
        clean = quantize(weight, format=format.name).dequantize(torch.float32)
        weight[1, format.block + 1] = value
        with pytest.raises(NonFiniteError, match="some name"):
            quantize(weight, format=format.name, name="some name")
        got = quantize(weight, format=format.name, nonfinite="nan").dequantize(torch.float32)
        assert bool(got[1, format.block + 1].isnan())
        hit = torch.zeros(3, 3, dtype=torch.bool)
        hit[1, 1] = True
        untouched = ~hit.repeat_interleave(format.block, dim=1)
        assert torch.equal(got[untouched], clean[untouched]), "another block changes"

    def test_parts_that_do_not_fit_are_refused(self, format: Format) -> None:
        """A part that is missing, too many, of another dtype or of another shape."""
        shape = torch.Size((4, 2 * format.block))
        sound = format.empty(shape)
        MxTensor.from_parts(format, sound, shape)
        last = format.parts[-1].name
        for wrong in (
            {},
            {name: part for name, part in sound.items() if name != last},
            {**sound, "another": sound[last]},
            {**sound, last: sound[last].to(torch.float64)},
            {**sound, last: sound[last][..., :-1]},
        ):
            with pytest.raises(FormatError):
                MxTensor.from_parts(format, wrong, shape)
        with pytest.raises(FormatError):
            MxTensor.from_parts(format, sound, torch.Size((4, format.block)))
        with pytest.raises(Mxfp4Error):
            quantize_into(self.draw(format, 4), {}, format=format.name)

    def test_modules_hold_its_parts(self, format: Format, tmp_path: Path) -> None:
        """A module has a buffer for each part under its suffix, and a file of them gives the same module."""
        from safetensors.torch import load_file, save_file

        weight = quantize(self.draw(format, 32), format=format.name)
        module = Mxfp4Linear.from_weight(weight)
        state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
        assert set(state) == {f"weight{part.suffix}" for part in format.parts}
        save_file(state, tmp_path / "model.safetensors")
        twin = Mxfp4Linear(32, weight.shape[-1], format=format.name)
        twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
        for name, part in twin.canonical("weight").parts.items():
            assert same(part, weight.parts[name])
        experts = Mxfp4Experts(2, 32, format.block, top_k=1, format=format.name)
        names = [name for name, _ in experts.named_buffers()]
        assert all(
            f"{proj}{part.suffix}" in names for proj in ("gate_up_proj", "down_proj") for part in format.parts
        )
