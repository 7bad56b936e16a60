"""The conformance suite of a profile: subclass it, name the profile, and run pytest.

    class TestMine(ProfileConformance):
        profile_name = "mine"

A profile says what the bytes are; the reference computes them slowly and plainly. What is fast must equal it, so a
profile is right if it is known by its name, takes the weights that it says it takes, and every path agrees.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.arithmetic import Profile, reference, resolve
from mxfp4_core.errors import FormatError, NonFiniteError
from mxfp4_core.testing.hard_weights import hard_weights
from mxfp4_core.testing.samples import random_x

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class ProfileConformance:
    """Everything that a profile must be right about.

    Attributes:
        profile_name: name of the entry point.
    """

    profile_name: ClassVar[str]

    @pytest.fixture
    def profile(self) -> Profile:
        """The profile under test, from its entry point."""
        return resolve(self.profile_name)

    def test_it_is_known_by_its_name(self, profile: Profile) -> None:
        """Quantising and configs take the name, and record it."""
        assert profile.name == self.profile_name
        assert Mxfp4Config.from_dict({"profile": profile.name}).resolved_profile() == profile.name
        dtype = (profile.dtypes or DTYPES)[0]
        assert quantize(random_x(2, 64, dtype), profile=profile.name).profile == profile.name

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_path_gives_the_same_bytes(self, profile: Profile, dtype: torch.dtype) -> None:
        """Ties, ends of the range, subnormals, zeros and what is not finite, or the dtype is refused."""
        weight = hard_weights(dtype)
        if profile.dtypes and dtype not in profile.dtypes:
            with pytest.raises(FormatError):
                quantize(weight, profile=profile.name, nonfinite="nan")
            return
        made = quantize(weight, profile=profile.name, nonfinite="nan")
        codes, scales = reference.quantize(weight, profile)
        assert torch.equal(made.scales, scales) and torch.equal(made.codes, codes)

    def test_values_are_near(self, profile: Profile) -> None:
        """Quantising ordinary weights costs no more than any rule costs, and leaves the sign."""
        weight = random_x(64, 256, (profile.dtypes or DTYPES)[0])
        values = quantize(weight, profile=profile.name).dequantize(torch.float32)
        error = float((values - weight.float()).norm() / weight.float().norm())
        assert error < 0.3, f"relative error {error:.3g}"
        assert not bool((values * weight.float() < 0).any()), "a sign turns"

    def test_what_is_not_finite_is_refused(self, profile: Profile) -> None:
        """By default, as for every other profile."""
        weight = random_x(2, 64, (profile.dtypes or DTYPES)[0])
        weight[1, 3] = torch.nan
        with pytest.raises(NonFiniteError):
            quantize(weight, profile=profile.name)


__all__ = ["ProfileConformance"]
