"""What a dialect is: how one public kind of checkpoint names, lays out and describes quantised weights.

A dialect recognises its checkpoints, reads where the parts of each weight come from, says under which names and in
which layout they are written, and writes the documents around them. It moves bytes and changes none; what rounds is a
job of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.checkpoint.layout import OF_LIBRARY, Layout
from mxfp4_core.dialects.beside import Narrow
from mxfp4_core.dialects.entry import Entry, alternates
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.errors import DialectError

if TYPE_CHECKING:
    from mxfp4_core.config.schema import Mxfp4Config
    from mxfp4_core.dialects.source import Source


@dataclass(frozen=True)
class Contents:
    """What a dialect reads from a checkpoint. Together it names every stored tensor once.

    Args:
        entries: the quantised weights by canonical name, in the order of the file.
        tensors: everything that is not quantised, by canonical name.
        kept: module names that the file declares as not quantised, in the dialect's own pattern language.
        profile: name of the resolved profile that wrote the codes, empty when the file does not say.
        activation: a word of ``mxfp4_core.config.ACTIVATIONS``: what the file asks for at run time.
        static: scales of activations that were found by calibration, by name: data of the activation, no part of a
            weight.
        beside: weights in another kind of quantisation, by canonical name.
        model: ``config.json`` without the words of this dialect outside of ``quantization_config``; None where there
            are none.
        untold: tensors that the description leaves out, where it is one that names each tensor.
        says_activation: whether the file says the activation; else nobody did, and whoever loads it decides.
    """

    entries: Mapping[str, Entry]
    tensors: Mapping[str, Recipe] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    profile: str = ""
    activation: str = "none"
    static: Mapping[str, Recipe] = field(default_factory=dict)
    beside: Mapping[str, Narrow] = field(default_factory=dict)
    model: Mapping[str, Any] | None = None
    untold: Collection[str] = ()
    says_activation: bool = True


@dataclass(frozen=True)
class Description:
    """What the documents of a checkpoint are written from.

    Args:
        model: ``config.json`` of the model; a ``quantization_config`` in it is an earlier one.
        config: the settings that the codes were made with.
        entries: the quantised weights.
        kept: names of the linear modules that stay in high precision.
        profile: name of the resolved profile of the codes, empty when it is unknown.
        beside: weights in another kind of quantisation.
        others: names of all tensors that are stored as they are.
        static: names of static scales of activations.
        untold: those of ``others`` that a description of the source, which names tensors, leaves out.
        source: the checkpoint that is written anew, for a dialect whose weight file repeats other files of it.
    """

    model: Mapping[str, Any]
    config: Mxfp4Config
    entries: Sequence[Entry]
    kept: Sequence[str]
    profile: str = ""
    beside: Sequence[Narrow] = ()
    others: Sequence[str] = ()
    static: Sequence[str] = ()
    untold: Collection[str] = ()
    source: Source | None = None


def one_activation(dialect: str, description: Description, format: str | None = None) -> str:
    """Return the activation mode of all weights, for dialects that have one description for them.

    Args:
        dialect: name for messages.
        description: what is to be described.
        format: the format of weights that have one mode, where others have modes of their own; None for all.

    Raises:
        DialectError: overrides give some weights another one.
    """
    found = description.config.activations(format)
    if len(found) > 1:
        raise DialectError(
            f"the dialect {dialect} cannot say what the config asks for",
            seen=f"activation modes {', '.join(found)}",
            rule="that dialect has one mode for all weights" + (f" in {format}" if format else ""),
            fix="write the dialect mxfp4-core, or use one mode",
        )
    return found[0]


AUTO_CLASS: Final = "AutoModelForCausalLM"
"""The class of transformers that loads a model of which nothing else is known."""


class Dialect(ABC):
    """One public kind of checkpoint. Stateless; one object a dialect.

    Attributes:
        name: as configs, commands and messages name it.
        formats: formats that it stores.
        linear_only: whether it stores nothing but 2-D weights ``[N, K]`` of linears in whole blocks.
        readers: who loads it, in a few words.
        components: diffusers loads a component of a pipeline from it, with the adapter of this project.
        file: name of the only weight file, where it is no safetensors file.
        layout: how the files are named and written, where readers or the vendor's own writer have a way of theirs.
    """

    name: str
    formats: frozenset[str] = frozenset({"mxfp4"})
    linear_only: bool = True
    readers: str = ""
    components: bool = False
    file: str = ""
    layout: Layout = OF_LIBRARY

    def __repr__(self) -> str:
        return f"<dialect {self.name}>"

    @abstractmethod
    def recognise(self, source: Source) -> str | None:
        """Return why a checkpoint is of this dialect, or None. It decides from config, headers and files."""

    @abstractmethod
    def read(self, source: Source) -> Contents:
        """Find the quantised weights of a checkpoint that it recognises.

        Raises:
            DialectError: the description and the tensors contradict each other.
        """

    @abstractmethod
    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Return the tensors to store for a weight, by name: recipes made of those of its parts.

        Only called with what `check` lets pass.
        """

    @abstractmethod
    def describe(self, description: Description) -> dict[str, Any]:
        """Return ``quantization_config`` for ``config.json``.

        Raises:
            DialectError: something that this dialect has no word for.
        """

    @abstractmethod
    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Return the line of Python or shell that loads a checkpoint of this dialect.

        Args:
            path: the folder.
            model: class of transformers that loads the model.
        """

    def settings(self, quantization_config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what `Mxfp4Config.from_dict` takes, where the file holds all of it; None where it does not."""
        return None

    def documents(self, description: Description) -> dict[str, dict[str, Any]]:
        """Return the JSON documents of a checkpoint by file name: ``config.json`` and what stands beside it.

        Raises:
            DialectError: something that this dialect has no word for.
        """
        return {"config.json": {**description.model, "quantization_config": self.describe(description)}}

    def can_say(self, profile: str) -> bool:
        """Return whether a description may name this profile; a conversion leaves open what it may not.

        Args:
            profile: name of a resolved profile.
        """
        return True

    def metadata(self, description: Description) -> dict[str, Any]:
        """Return what the header of each weight file says beside the tensors; empty for most dialects.

        It is text by key in safetensors; GGUF has numbers and lists, too.

        Raises:
            DialectError: something that this dialect has no word for.
        """
        return {}

    def notes(self, description: Description) -> list[str]:
        """Return what a reader of the result should know though nothing is wrong; nothing for most dialects."""
        return []

    def write_others(self, tensors: Mapping[str, Recipe], model: Mapping[str, Any]) -> dict[str, Recipe]:
        """Return the tensors to store for everything that is not quantised, by name: as they are for most dialects.

        Args:
            tensors: recipes by canonical name.
            model: ``config.json`` of the model.

        Raises:
            DialectError: a tensor that this dialect has no name for.
        """
        return dict(tensors)

    def arrange(self, entries: Sequence[Entry], model: Mapping[str, Any]) -> list[Entry]:
        """Return the weights as this dialect has them: experts stacked or one by one, rows in its order.

        Args:
            entries: the weights as the source has them.
            model: ``config.json`` of the model.

        Raises:
            DialectError: a weight that it has no place for.
        """
        return list(entries)

    def write_static(self, static: Mapping[str, Recipe]) -> dict[str, Recipe]:
        """Return the tensors to store for static scales of activations, by name.

        Raises:
            DialectError: the dialect has none.
        """
        self.no_static(tuple(static))

    def no_static(self, names: Sequence[str]) -> NoReturn:
        """Raise the error for static scales of activations that the dialect has no words for."""
        raise DialectError(
            f"static scales of activations cannot be written in the dialect {self.name}",
            seen=f"{len(names)} static scales, for example {next(iter(names), '')!r}",
            rule="only the dialect that they come from says what they mean",
            fix="say how activations are quantised instead (--activation none, mxfp4 or fp8), which leaves them out",
        )

    def write_beside(self, beside: Narrow) -> dict[str, Recipe]:
        """Return the tensors to store for a weight in another kind of quantisation, by name.

        Raises:
            DialectError: the dialect has no word for such weights.
        """
        raise DialectError(
            f"tensor {beside.weight!r} cannot be written in the dialect {self.name}",
            seen=beside.told,
            rule="that dialect has no word for it",
            fix="widen it to BF16 (--beside widen), which is exact or an error; quantise it again (--beside quantize), "
            "which rounds; or choose the dialect that it comes from",
        )

    def check(self, entry: Entry) -> None:
        """Refuse a weight that this dialect cannot store.

        Raises:
            DialectError: names the tensor and what is unusual about it.
        """
        if entry.format not in self.formats:
            raise DialectError(
                f"tensor {entry.weight!r} cannot be written in the dialect {self.name}",
                seen=f"format {entry.format}",
                rule=f"that dialect stores {', '.join(sorted(self.formats))}",
                fix="write the dialect mxfp4-core, or choose another format",
            )
        if not self.linear_only:
            return
        unusual = {
            f"K = {entry.shape[-1]}, padded": entry.shape[-1] % BLOCK != 0,
            "stacked experts": len(entry.shape) > 2,
            "a weight with K before N": entry.transposed,
            "a name of its own": not entry.weight.endswith(".weight"),
        }
        for seen, found in unusual.items():
            if found:
                raise DialectError(
                    f"tensor {entry.weight!r} cannot be written in the dialect {self.name}",
                    seen=f"{seen}, shape {list(entry.shape)}",
                    rule="that dialect stores one 2-D weight [N, K] of a Linear at a time, in whole blocks",
                    fix="write the dialect mxfp4-core, or add the name to ignore",
                )


__all__ = ["AUTO_CLASS", "Contents", "Description", "Dialect", "Entry", "alternates", "one_activation"]
