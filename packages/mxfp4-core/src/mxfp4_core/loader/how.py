"""How a target turns numbers into bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.backend.quantizers import DeviceQuantizers
from mxfp4_core.config.schema import Mxfp4Config


@dataclass(frozen=True)
class Arithmetic:
    """How a target turns numbers into bytes.

    Args:
        profile: name of a resolved profile.
        tail: whether K may end inside a block, which zeros then fill.
        nonfinite: what NaN and infinity get.
        threads: CPU threads for one piece; torch's number if None.
        quantizers: who quantises on which device; the core if nobody else.
    """

    profile: str
    tail: Literal["refuse", "pad"] = "refuse"
    nonfinite: Literal["refuse", "nan"] = "refuse"
    threads: int | None = None
    quantizers: DeviceQuantizers = field(default_factory=DeviceQuantizers)


def profile_name(config: Mxfp4Config, format: Format, profile: str | None = None) -> str:
    """Return the name of the profile that makes a format: that of an override, of the config, or the format's own."""
    if profile is not None:
        return format.resolve(profile).name
    return format.resolve(config.profile, rule=config.rule, ties=config.ties).name


__all__ = ["Arithmetic", "profile_name"]
