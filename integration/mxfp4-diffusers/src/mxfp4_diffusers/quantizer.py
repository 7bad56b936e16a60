"""The quantizer: what ``from_pretrained`` and ``save_pretrained`` of diffusers ask, answered with the core's words."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer

from mxfp4_core.backend import DeviceQuantizers, settled
from mxfp4_core.checkpoint import TensorInfo
from mxfp4_core.loader import LoadReport, LoadReportBuilder, LoadSession, check_config, count_modules
from mxfp4_core.modules import (
    ModelPlan,
    chosen_backends,
    device_names,
    empty_module,
    hold_place,
    plan_model,
    prepare_model,
    settle,
    widened,
)
from mxfp4_diffusers import compat
from mxfp4_diffusers.checks import check_complete, check_offload, check_readable, check_single, described
from mxfp4_diffusers.config import Mxfp4CoreConfig, on_this_machine
from mxfp4_diffusers.folder import Folder
from mxfp4_diffusers.targets import Targets
from mxfp4_diffusers_models.view import view_of

logger = logging.getLogger(__name__)


class Mxfp4Quantizer(DiffusersQuantizer):
    """Loads a model with MXFP4 weights, quantising them if they are not yet.

    Attributes:
        report: what the load did, once it is done.
        plan: which modules have MXFP4 weights, and why each other one has not.
    """

    use_keep_in_fp32_modules = (
        True  # diffusers drops the list of a model for quantizers that do not ask for it
    )
    quantization_config: Mxfp4CoreConfig

    def __init__(self, quantization_config: Mxfp4CoreConfig, **kwargs: Any) -> None:
        check_config(quantization_config, Mxfp4CoreConfig)
        # A copy: one config may load many models, and each model's says something about its own weights.
        super().__init__(copy.copy(quantization_config), **kwargs)
        self.quantization_config.core = on_this_machine(quantization_config.core)
        # A single file in high precision comes with the words of one that is quantised: the config knows.
        self.pre_quantized = self.quantization_config.stored
        self.report: LoadReport | None = None
        self.plan = ModelPlan()
        self._dtype = torch.get_default_dtype()
        self._headers: dict[str, TensorInfo] = {}
        self._folder: Folder | None = None
        self._targets: Targets | None = None
        self._quantizers = DeviceQuantizers()

    # before the load

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse what cannot work whatever the model is."""
        check_offload(device_map)

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype | None:
        """Remember the dtype of the model, which is torch's own where none is asked for."""
        self._dtype = torch_dtype or torch.get_default_dtype()
        return torch_dtype

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[Any]) -> list[str]:
        """Look into the files before anything is read, and give the names that the model will load."""
        if self.pre_quantized:
            self._folder = Folder.quantised(Path(checkpoint_files[0]).parent)
            return list(self._folder.described)
        self._headers = compat.headers(checkpoint_files)
        return loaded_keys

    def _process_model_before_weight_loading(
        self,
        model: Any,
        device_map: Any = None,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decide about every weight and put MXFP4 modules, still empty, where weights are to be quantised."""
        core, devices = self.quantization_config.core, device_names(device_map)
        headers = {name: (each.dtype, each.shape) for name, each in self._headers.items()}
        if state_dict is not None and not headers and self._folder is None:  # from_single_file
            headers = dict(compat.headers_of(state_dict))
        left: Mapping[str, Any] = {}
        if self._folder is not None:
            headers = dict(self._folder.described)
            view = view_of(model, headers)
            found = self._folder.plan(model, view, core, devices, self._dtype)
            self.plan, self.quantization_config.core, left = found
            core = self.quantization_config.core
        else:
            core = self.quantization_config.core = settled(core, devices)
            view = view_of(model, headers)
            self.plan = plan_model(model, core, view, devices=devices, dtype=self._dtype)
        if headers:
            check_complete(view, self.plan, headers, stored=self._folder is not None)
        for site in self.plan.sites:
            module = empty_module(
                model,
                site,
                activation=self.plan.activation_of(site),
                profile=self.plan.profile_of(site),
                format=self.plan.format_of(site),
                dtype=self._dtype,
            )
            hold_place(module, site, self._dtype)
            model.set_submodule(site.path, module)
        self._quantizers = DeviceQuantizers(chosen_backends(model, core, devices, self._dtype))
        if self._folder is None:
            for format, profiles in self.plan.profiles.items():
                self._quantizers.start(profiles, self._dtype, format)
        builder = LoadReportBuilder(devices=list(dict.fromkeys(["cpu", *devices])))
        session = LoadSession(core, report=builder, quantizers=self._quantizers)
        self._targets = Targets(session, model, self.plan, self._dtype, builder, self._folder, left)
        return model

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """Take out what a checkpoint need not have: the parts that are made of a weight."""
        made = {name for weight in self.plan.weights.values() for name in weight.names.values()}
        return [name for name in missing_keys if name.removeprefix(prefix) not in made]

    def get_special_dtypes_update(self, model: Any, torch_dtype: torch.dtype) -> dict[str, Any]:
        """Return how large the weights will be, for a device map."""
        return {name: compat.size_word(weight) for name, weight in self.plan.weights.items()}

    # during the load

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Show the tensors of a quantised file under the names of the model."""
        if self._folder is None:
            check_single(stored=self.pre_quantized)  # a folder would have been opened by now
            return state_dict
        return self._folder.shown(state_dict)

    def check_if_quantized_param(
        self, model: Any, param_value: Any, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        """Say whether a tensor is a weight that is quantised, or comes so."""
        taken = self._targets
        return param_name in self.plan.weights or (taken is not None and param_name in taken.widened)

    def create_quantized_param(
        self,
        model: Any,
        param_value: torch.Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, torch.Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Quantise a weight into its module, or fill it with what a quantised folder has."""
        if self._targets is None:
            raise RuntimeError("create_quantized_param comes after preprocess_model")
        device = device_names({"": target_device})[0]
        self._targets.take(param_name, state_dict, torch.device(device))

    # after the load

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Check that everything arrived, derive the backend's layout, and report."""
        targets, core = self._targets, self.quantization_config.core
        if targets is None:
            raise RuntimeError("postprocess_model comes after preprocess_model")
        targets.check()
        builder = targets.report
        with builder.timing("preparing"):
            for site in self.plan.sites:
                settle(model.get_submodule(site.path), site, self.plan.weights)
            chosen = prepare_model(
                model,
                backend=core.backend,
                fallback=core.fallback,
                backend_options=core.backend_options,
                dtype=self._dtype,
                consume=True,
            )
        config = self.quantization_config
        config.core = core.model_copy(update={"ignore": [*core.ignore, *self.plan.ignore]})
        config.quant_method, config.facts = described(config.core, self.plan)
        model.register_to_config(quantization_config=config)
        builder.backend = ", ".join(dict.fromkeys(selection.backend.name for selection in chosen.values()))
        builder.quantizer = ", ".join(self._quantizers.names)
        builder.profile = ", ".join(dict.fromkeys(weight.profile for weight in self.plan.weights.values()))
        count_modules(builder, model, self.plan, targets.bytes_read)
        self.report = model.mxfp4_report = builder.build()
        logger.info("%s", self.report.line())
        # What only the load needed: the quantizer is copied and pickled with its model.
        self._targets, self._folder, self._headers = None, None, {}
        self._quantizers = DeviceQuantizers()
        return model

    def _dequantize(self, model: Any) -> Any:
        """Put the model's own modules back, with the values of the MXFP4 weights in the dtype of the load."""
        for site in self.plan.sites:
            model.set_submodule(site.path, widened(model.get_submodule(site.path), site, self._dtype))
        compat.forget(model)
        return model

    # questions

    def get_cuda_warm_up_factor(self) -> int:
        """Return how many elements share one of the model's dtype in the memory that is allocated ahead."""
        return 4 if self.quantization_config.core.format != "mxfp8" else 2

    @property
    def is_serializable(self) -> bool:
        """Say that ``save_pretrained`` works, which asks before it writes.

        Raises:
            DialectError: what it would write could not be read again.
        """
        check_readable(self.quantization_config, self.plan)
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that adapters on top of the weights, which are frozen, can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Say that the model may be compiled: the operators of a backend have fakes."""
        return True


__all__ = ["Mxfp4Quantizer"]
