"""What a config says about some names alone."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, StrictBool, model_validator

from mxfp4_core.config.checks import check_arithmetic, check_format
from mxfp4_core.config.messages import contradiction, listed
from mxfp4_core.config.model import ConfigModel
from mxfp4_core.config.patterns import Pattern
from mxfp4_core.config.words import Activation


class Override(ConfigModel):
    """What is different for the names that one pattern hits."""

    TITLE: ClassVar = "an override"

    pattern: str = Field(description="Names that this override is for.")
    format: str | None = Field(
        default=None, description="What these weights become: mxfp4, mxfp4-dual or mxfp8."
    )
    profile: str | None = Field(default=None, description="Profile for these weights.")
    rule: str | None = Field(default=None, description="Scale rule for these weights.")
    ties: str | None = Field(default=None, description="Tie rule for these weights.")
    activation: Activation | None = Field(
        default=None, description="How the backend is to quantise the activations of these weights."
    )
    keep: StrictBool | None = Field(
        default=None,
        description="True: keep in high precision. False: quantise even what the defaults keep.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        what = f"override {self.pattern!r}"
        Pattern.parse(self.pattern)
        if self.format is not None:
            check_format(what, self.format, [self.profile])
        arithmetic = check_arithmetic(what, self.profile, self.rule, self.ties)
        others = listed(format=self.format), arithmetic, listed(activation=self.activation)
        settings = ", ".join(filter(None, others))
        if self.keep and settings:
            raise contradiction(
                what,
                f"keep = true with {settings}",
                "a weight that is kept has no rule, no activation and no format",
                "drop one",
            )
        if self.keep is None and not settings:
            fix = "give it keep, format, profile, rule, ties or activation"
            raise contradiction(what, "a pattern and nothing else", "an override changes something", fix)
        return self


__all__ = ["Override"]
