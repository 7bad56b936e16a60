"""What vLLM calls in each of its processes: it makes our methods known."""

from __future__ import annotations

import logging
from typing import Any

from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.loader import check_free
from mxfp4_vllm.words import METHOD, METHOD_FP8, check_version, installed_version

CHOOSE = "uninstall one of the two, or name the plug-ins to load: VLLM_PLUGINS=mxfp4"
_LOG = logging.getLogger("mxfp4_vllm")


def register() -> None:
    """Make ``mxfp4-core`` and ``mxfp8-core`` choices of ``--quantization``; again it changes nothing.

    An error here would end vLLM also for those who do not use MXFP4. So what stands in the way is raised where
    somebody asks for the method.
    """
    try:
        check_version(installed_version())
    except Mxfp4Error as error:
        _refuse(error)
        return
    from mxfp4_vllm import compat, kernels, log
    from mxfp4_vllm.config import Mxfp4QuantizationConfig, Mxfp8QuantizationConfig

    for name, config in ((METHOD, Mxfp4QuantizationConfig), (METHOD_FP8, Mxfp8QuantizationConfig)):
        _register(compat, name, config)
    kernels.offer()
    log.join()


def _register(compat: Any, name: str, config: type) -> None:
    taken = compat.registered(name) if name in compat.QUANTIZATION_METHODS else None
    try:
        check_free(name, taken, config, engine="vLLM", fix=CHOOSE)
    except Mxfp4Error as error:
        _LOG.error("%s", error)  # the other package serves those who ask for the name
        return
    if taken is None:
        compat.register_quantization_config(name)(config)


def _refuse(error: Mxfp4Error) -> None:
    """Register, under our names, what raises an error when it is chosen."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    members = {name: staticmethod(fail) for name in ("from_config", "get_config_filenames")}
    refusing = type("Refused", (QuantizationConfig,), {**members, "__init__": fail})
    for name in (METHOD, METHOD_FP8):
        if name not in QUANTIZATION_METHODS:
            register_quantization_config(name)(refusing)


__all__ = ["register"]
