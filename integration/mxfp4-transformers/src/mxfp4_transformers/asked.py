"""What may be asked of a checkpoint that is quantised already: the backend, and what belongs to this machine."""

from __future__ import annotations

import logging
from typing import Any

from mxfp4_core.config import MACHINE
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.errors import ConfigError
from mxfp4_transformers.folder import Folder

_LOG = logging.getLogger("mxfp4_transformers")

_ARITHMETIC = frozenset({"profile", "rule", "ties"})


def agreed(folder: Folder, asked: CoreConfig) -> CoreConfig:
    """Return the config of a load: rules and formats from the folder, the choice of a backend from the caller.

    Args:
        folder: the checkpoint.
        asked: what the caller wants. ``activation="none"`` may be asked of any folder, which is then reported: it
            computes with the weights that are there, and differs from the folder in what x is rounded to. Where the
            folder does not say it, any word may be asked.

    Raises:
        ConfigError: anything else contradicts the folder.
    """
    own = _own(folder)
    given = asked.model_fields_set - {*MACHINE}
    pairs: dict[str, tuple[Any, Any]] = {
        key: (getattr(asked, key), getattr(own, key)) for key in sorted(given - _ARITHMETIC)
    }
    if given & _ARITHMETIC:
        pairs["profile"] = asked.resolved_profile(), folder.contents.profile or "unknown"
    if "dialect" in pairs and asked.dialect == folder.dialect.name:
        del pairs["dialect"]
    update: dict[str, Any] = {key: getattr(asked, key) for key in MACHINE}
    if pairs.get("activation", ("", ""))[0] == "none":
        _, stored = pairs.pop("activation")
        modes = [stored, *(each.activation for each in own.overrides)]
        modes += [each.activation for each in folder.contents.entries.values()]
        update["activation"] = "none"
        update["overrides"] = [
            each.model_copy(update={"activation": "none"} if each.activation else {})
            for each in own.overrides
        ]
        if made_for := list(dict.fromkeys(mode for mode in modes if mode not in ("none", "", None))):
            _LOG.warning(
                "activations stay in high precision, as asked; the checkpoint was made for %s",
                ", ".join(made_for),
            )
    elif "activation" in pairs and not folder.contents.says_activation:
        update["activation"], _ = pairs.pop("activation")
    if wrong := {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}:
        raise ConfigError(
            f"the config contradicts the checkpoint {folder.checkpoint.path}, which is quantised already",
            seen="; ".join(
                f"{key}: {want!r} asked, {have!r} in the folder" for key, (want, have) in wrong.items()
            ),
            rule="the folder decides rules, formats and names; a backend can be chosen, and activation='none'",
            fix=f"drop {' and '.join(wrong)}, or load the checkpoint in high precision from which this one was made",
        )
    return own.model_copy(update=update)


def _own(folder: Folder) -> CoreConfig:
    contents = folder.contents
    settings = folder.dialect.settings(folder.checkpoint.config.get("quantization_config") or {})
    if settings is not None:
        return CoreConfig.from_dict(settings)
    rule, pair, ties = contents.profile.partition("/")
    named = {"profile": contents.profile} if contents.profile else {}
    return CoreConfig.from_dict(
        {**({"rule": rule, "ties": ties} if pair else named), "activation": contents.activation}
    )


__all__ = ["agreed"]
