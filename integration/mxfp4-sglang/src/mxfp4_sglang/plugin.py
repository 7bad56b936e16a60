"""What SGLang calls in each of its processes: it makes our methods known."""

from __future__ import annotations

from mxfp4_sglang.words import FIRST_DIFFUSION, METHOD, METHOD_FP8, check_version, installed_version


def register() -> None:
    """Make ``mxfp4-core`` and ``mxfp8-core`` choices of ``--quantization``; again it changes nothing.

    Raises:
        ConfigError: another release of SGLang than those that are known here, or a name that is taken. SGLang logs it
            (``Failed to execute general plugin: mxfp4``) and goes on without us.
    """
    check_version(installed_version())
    from mxfp4_sglang import compat, hooks
    from mxfp4_sglang.config import Mxfp4QuantizationConfig, Mxfp8QuantizationConfig

    compat.add_methods({METHOD: Mxfp4QuantizationConfig, METHOD_FP8: Mxfp8QuantizationConfig})
    compat.around(compat.VERIFY, hooks.verify)
    compat.around(compat.CONFIGURED, hooks.configured)
    compat.around(compat.WEIGHTS, hooks.weights)


def register_diffusion() -> None:
    """Make the same choices for the diffusion server; again it changes nothing.

    Raises:
        ConfigError: as `register`.
    """
    check_version(installed_version(), FIRST_DIFFUSION)
    from mxfp4_sglang import compat, diffusion

    compat.add_diffusion_methods(diffusion.CONFIGS)
    compat.around_diffusion(compat.DIFFUSION_GET, diffusion.get_config)
    compat.around_diffusion(compat.DIFFUSION_NAMES, diffusion.names_mapping)
    compat.around_diffusion(compat.DIFFUSION_RESOLVE, diffusion.resolved)


__all__ = ["register", "register_diffusion"]
