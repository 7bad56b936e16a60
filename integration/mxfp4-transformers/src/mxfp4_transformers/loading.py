"""One line for any checkpoint: in high precision, or quantised by whatever made it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, GenerationConfig

from mxfp4_core.checkpoint import hub_name, is_adapter, local_path
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.errors import CheckpointError, ConfigError
from mxfp4_transformers import compat
from mxfp4_transformers.asked import agreed
from mxfp4_transformers.config import Mxfp4CoreConfig
from mxfp4_transformers.folder import Folder
from mxfp4_transformers.meta import VERSION
from mxfp4_transformers.serialised import Serialised

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
_DESCRIPTIONS = ("quantization_config", "compression_config")


def from_pretrained(
    path: str | os.PathLike[str],
    config: Mxfp4CoreConfig | CoreConfig | Mapping[str, Any] | None = None,
    auto_class: Any = AutoModelForCausalLM,
    **kwargs: Any,
) -> Any:
    """Load a model with MXFP4 weights onto a backend, from whatever checkpoint there is.

    A checkpoint in high precision is quantised while it is read, as ``auto_class.from_pretrained`` with a
    ``quantization_config`` does. One that is quantised already, in any dialect of `mxfp4_core.dialects`, keeps its own
    codes and scales, whatever ``quant_method`` its config.json names; the package that made it need not be installed.
    Memory is that of a load that quantises: what is loaded so far and a piece of a tensor.

    Args:
        path: a folder, or the name of a repository on the Hub.
        config: what to quantise and for which backend; of a quantised checkpoint, the choice of the backend and
            ``activation``, which is ``"none"`` or what the checkpoint says: then a backend does that or refuses, while
            without it x stays in high precision, with a warning, where no backend quantises it. Fields that say
            nothing about the checkpoint are not to be given. It is the config of this package, that of the core, or a
            dictionary.
        auto_class: the class that loads, an Auto class or a model's own.
        **kwargs: further arguments of its ``from_pretrained``, but ``quantization_config``: that is ``config``.

    Returns:
        The model, or what ``from_pretrained`` returns with these arguments.

    Raises:
        ConfigError: the config contradicts the checkpoint, or asks for what the model cannot do; or config.json
            describes no model of transformers.
        DialectError: the checkpoint is quantised in a way that no dialect reads.
        LoadError: weights are missing, or have no place in the model.
        BackendError: no backend takes a weight.
    """
    if "quantization_config" in kwargs:
        raise ConfigError(
            "from_pretrained of mxfp4_transformers takes no quantization_config",
            seen=f"quantization_config = {kwargs['quantization_config']!r}",
            rule="what to quantise is the argument config, whatever the checkpoint is",
            fix="pass it as config=",
        )
    config = _config_of(config)
    local = _local(path, kwargs)
    folder = Folder.open(local)
    if folder is None:
        _check_config(local, auto_class, kwargs)
        return auto_class.from_pretrained(path, quantization_config=config, **kwargs)
    own = Mxfp4CoreConfig(agreed(folder, config.core))
    own.serialised = Serialised(folder, insists="activation" in config.core.model_fields_set)
    for name in (*_HUB, "subfolder", "use_safetensors"):  # ``local`` is what they lead to
        kwargs.pop(name, None)
    dtype = _dtype(kwargs.pop("dtype", kwargs.pop("torch_dtype", None)) or "auto")
    remote = bool(kwargs.get("trust_remote_code"))  # which AutoConfig takes away
    model_config, kwargs = _model_config(local, folder, kwargs)
    kwargs.pop("trust_remote_code", None)
    _undescribed(model_config, folder)
    if dtype == "auto":
        dtype = _dtype(getattr(model_config.get_text_config(), "dtype", None) or folder.dtype())
    model_class, model_config = compat.class_of(auto_class, model_config, local, remote)
    if "generation_config" not in kwargs and (local / "generation_config.json").exists():
        # A model that generates in a way of its own may have a class for that, which takes no words of others.
        own_words = getattr(model_class, "generation_config_class", GenerationConfig)
        kwargs["generation_config"] = own_words.from_pretrained(local)
    loaded = model_class.from_pretrained(
        None,
        config=model_config,
        state_dict=own.serialised.state,
        quantization_config=own,
        dtype=dtype,
        **kwargs,
    )
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.config.name_or_path = model.name_or_path = str(path)
    return loaded


def _dtype(given: Any) -> Any:
    """Return the dtype that a word names; ``auto``, and what is no word, as it is."""
    found = getattr(torch, given, None) if isinstance(given, str) and given != "auto" else given
    if isinstance(given, str) and not isinstance(found, torch.dtype | str):
        raise ConfigError(
            "from_pretrained cannot take this dtype",
            seen=f"dtype = {given!r}",
            rule="dtype is 'auto', a dtype of torch, or the name of one",
            fix="write bfloat16, float16 or float32",
        )
    return found


def _local(path: str | os.PathLike[str], kwargs: Mapping[str, Any]) -> Path:
    """Return the folder with the files, which are fetched if they are on the Hub."""
    local = Path(path)
    if not local.is_dir():
        if local.exists() or hub_name(path) != str(path):
            raise CheckpointError(
                f"cannot load {path}",
                seen="a file" if local.exists() else "no such folder",
                rule="a checkpoint is a folder with config.json and safetensors files, or the name of one on the Hub",
                fix="pass the folder",
            )
        hub = {name: kwargs[name] for name in _HUB if name in kwargs}
        local = _fetched(str(path), hub, ("*.py",) if kwargs.get("trust_remote_code") else ())
    subfolder = kwargs.get("subfolder")
    return local / subfolder if subfolder else local


def _fetched(name: str, hub: dict[str, Any], others: Sequence[str]) -> Path:
    """Return the snapshot of a model on the Hub; where the Hub is out of reach, the one in the cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", *others], **hub))
    except Exception as error:  # of several libraries: no network, no such name, no permission, no disk
        cached = local_path(name)
        if cached.is_dir() and not hub:
            return cached
        raise CheckpointError(
            f"cannot load {name}",
            seen=f"no such folder here, and the Hub does not give it: {type(error).__name__}: {error}",
            rule="a checkpoint is a folder with config.json and safetensors files, or the name of one on the Hub",
            fix="check the name, the network and the permission (`hf auth login`), or pass a folder",
        ) from error


def _config_of(given: Any) -> Mxfp4CoreConfig:
    if isinstance(given, Mxfp4CoreConfig):
        return given
    if isinstance(given, CoreConfig):
        return Mxfp4CoreConfig(given)
    if given is None or isinstance(given, Mapping):
        return Mxfp4CoreConfig(**dict(given or {}))
    raise ConfigError(
        "from_pretrained cannot take this config",
        seen=f"a {type(given).__module__}.{type(given).__name__}",
        rule="config is a Mxfp4Config of mxfp4_transformers or mxfp4_core, or a dictionary of its fields",
        fix="pass one of these",
    )


def _model_config(local: Path, folder: Folder, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the config of the model, and the arguments that are none of its fields."""
    written, dialect = folder.checkpoint.config, folder.contents.model
    try:
        if dialect is not None and "model_type" in dialect and "model_type" not in written:
            kind = CONFIG_MAPPING[dialect["model_type"]]
            return kind.from_dict(dict(dialect), return_unused_kwargs=True, **kwargs)
        return AutoConfig.from_pretrained(local, return_unused_kwargs=True, **kwargs)
    except Exception as error:  # a config is any JSON: whatever transformers raises means the same
        raise _no_model(local, error) from error


def _no_model(local: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"config.json of {local} describes no model",
        seen=f"{type(error).__name__}: {error}",
        rule=f"it has a model_type that transformers {VERSION} knows, and fields that this type has",
        fix="complete config.json, or install a transformers that knows the model; where the checkpoint brings "
        "code of its own, pass trust_remote_code=True",
    )


def _check_config(local: Path, auto_class: Any, kwargs: Mapping[str, Any]) -> None:
    """Check that there is a model to load where an Auto class has to find out which; an adapter says it of its base."""
    if hasattr(auto_class, "_model_mapping") and not is_adapter(local):
        remote = {key: kwargs[key] for key in ("trust_remote_code",) if key in kwargs}
        try:
            AutoConfig.from_pretrained(local, **remote)
        except Exception as error:  # as in `_model_config`
            raise _no_model(local, error) from error


def _undescribed(model_config: Any, folder: Folder) -> None:
    """Take the words of the dialect out of a config, so that transformers builds the plain model."""
    words = set(_DESCRIPTIONS)
    if folder.contents.model is not None:
        words |= set(folder.checkpoint.config) - set(folder.contents.model)
    parts = [model_config, *(getattr(model_config, key, None) for key in model_config.sub_configs)]
    for part in parts:
        for word in words & set(vars(part) if part is not None else ()):
            delattr(part, word)


__all__ = ["from_pretrained"]
