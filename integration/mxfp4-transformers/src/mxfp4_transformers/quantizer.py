"""The quantizer: what ``from_pretrained`` and ``save_pretrained`` ask, answered with the core's words."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightTransform
from transformers.quantizers.base import HfQuantizer

from mxfp4_core.backend import DeviceQuantizers, settled
from mxfp4_core.checkpoint import TensorInfo
from mxfp4_core.errors import DialectError
from mxfp4_core.loader import LoadReport, LoadReportBuilder, LoadSession, check_config, count_modules
from mxfp4_core.modules import (
    ModelPlan,
    chosen_backends,
    device_names,
    likely_backends,
    plan_model,
    prepare_model,
    widened,
)
from mxfp4_transformers import compat, converters, offload
from mxfp4_transformers.adapters import below_adapters
from mxfp4_transformers.config import Mxfp4CoreConfig
from mxfp4_transformers.counting import LogicalCount
from mxfp4_transformers.feed import Feed
from mxfp4_transformers.folder import Folder
from mxfp4_transformers.ops import Converter, Direct, Nothing, QuantizeOp
from mxfp4_transformers.packer import Packer
from mxfp4_transformers.parallel import place_empty, settle_all
from mxfp4_transformers.plan import check_biases, rounded, sources
from mxfp4_transformers.refitting import kept_tensors
from mxfp4_transformers.saving import check_readable, facts, unsayable
from mxfp4_transformers.serialised import Serialised
from mxfp4_transformers.sharding import Ranks, Share, check_whole
from mxfp4_transformers.targets import Targets
from mxfp4_transformers.undo import Loaded, Undo
from mxfp4_transformers.view import view_of

logger = logging.getLogger(__name__)


class Mxfp4Quantizer(HfQuantizer):
    """Loads a model with MXFP4 weights, quantising them if they are not yet.

    Attributes:
        report: what the load did, once it is done.
        plan: which modules have MXFP4 weights, and why each other one has not.
    """

    requires_calibration = False
    quantization_config: Mxfp4CoreConfig

    def __init__(self, quantization_config: Mxfp4CoreConfig, **kwargs: Any) -> None:
        check_config(quantization_config, Mxfp4CoreConfig)
        # A copy: one config may load many models, and each model's says something about its own weights.
        super().__init__(copy.copy(quantization_config), **kwargs)
        # transformers reads ahead and casts what it takes for quantised; a session fills the weights here.
        self._reloads: bool = kwargs.get("pre_quantized", True)
        self.pre_quantized = False
        self.report: LoadReport | None = None
        self.plan = ModelPlan()
        self._builder: LoadReportBuilder | None = None
        self._packer: Packer | None = None
        self._targets: Targets | None = None
        self._operation: ConversionOps | None = None
        self._headers: dict[str, TensorInfo] = {}
        self._device_map: dict[str, Any] | None = None
        self._quantizers = DeviceQuantizers()
        self._model: Any = None
        self._unsayable: DialectError | None = None
        self._undo: Undo | None = None
        self._dtype: torch.dtype = torch.bfloat16
        self._ranks: Ranks | None = None
        self._shares: dict[str, Share] = {}

    # before the load

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse what cannot work whatever the model is."""
        if isinstance(device_map, torch.device):  # of this process, where several share a model
            device_map = {"": device_map}
        if not isinstance(device_map, dict):
            return
        self._device_map = device_map
        if not self._reloads:
            # Likely the backend of the model, which is still to be made: kernels take half a second to start.
            core = self.quantization_config.core
            self._quantizers = DeviceQuantizers(likely_backends(core, device_map))
            self._quantizers.start([core.resolved_profile()], self._dtype, core.format)

    def _process_model_before_weight_loading(
        self,
        model: Any,
        dtype: torch.dtype | None = None,
        device_map: Any = None,
        checkpoint_files: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decide about every weight and put MXFP4 modules, still empty, where weights are to be quantised."""
        ranks = self._ranks = compat.ranks_of(model)
        devices = device_names(device_map)
        core = self.quantization_config.core
        self._headers = compat.headers(checkpoint_files)
        self._dtype = dtype or compat.dtype_of(model)
        if self._reloads:
            described = {**model.config.to_dict(), "quantization_config": self.quantization_config.to_dict()}
            folder = Folder.of_files(self._headers, described)
            self.quantization_config.serialised = Serialised(folder, files=True)
        if (serialised := self.quantization_config.serialised) is not None:
            self.plan = serialised.plan(model, core, devices, self._dtype)
        else:
            core = self.quantization_config.core = settled(core, devices)
            view = view_of(model, {name: (each.dtype, each.shape) for name, each in self._headers.items()})
            self.plan = plan_model(model, core, view, devices=devices, dtype=self._dtype)
            if self._headers:
                check_biases(
                    model, self.plan, {name for each in view.tensors.values() for name in each.parameters}
                )
        self._shares = place_empty(model, self.plan, ranks, self._dtype)
        backends = chosen_backends(model, core, devices, self._dtype)
        if torch.cuda.is_available() and any(name.startswith("cuda") for name in devices):
            torch.cuda.init()  # a meter reads nothing before, and the load is about to do it
        self._quantizers = DeviceQuantizers(backends, self._quantizers)
        if serialised is None:
            for format, profiles in self.plan.profiles.items():
                self._quantizers.start(profiles, self._dtype, format)
        self._builder = LoadReportBuilder(devices=list(dict.fromkeys(["cpu", *devices])))
        self._model = model
        return model

    def update_weight_conversions(
        self, weight_conversions: list[WeightTransform], model: Any = None
    ) -> list[WeightTransform]:
        """Let the conversions of the model quantise, or put one in front that fills weights with what a folder has."""
        model = self._model
        builder = self._builder or LoadReportBuilder()
        serialised = self.quantization_config.serialised
        session = LoadSession(self.quantization_config.core, report=builder, quantizers=self._quantizers)
        self._targets = targets = Targets(
            session,
            model,
            self.plan,
            self._dtype,
            serialised is not None,
            shares=self._shares,
            parking=lambda name: offload.parking_of(self._device_map, name),
        )
        if serialised is not None:
            placed = serialised.placed(targets, builder, weight_conversions, self._dtype, self._device_of)
            self._operation = Nothing()
            return [placed, *weight_conversions]
        # What is read ahead are whole weights.
        feed = Feed({} if self._shares else self.plan.weights, self._headers, self._dtype, self._device_of)
        self._packer = Packer(targets, builder, feed)
        result: list[WeightTransform] = []
        for entry in weight_conversions:
            if isinstance(entry, WeightConverter) and converters.feeds(entry, self.plan.weights):
                entry = converters.rebuilt(Converter, entry)
                entry.packer = self._packer
            result.append(entry)
        result.append(Direct(self._packer, model.base_model_prefix))
        self._operation = QuantizeOp(self._packer)
        self._packer.sources = sources(self._headers, self.plan.weights, result, model)
        targets.wide = feed.wide = rounded(self._headers, self._packer.sources, self.plan, self._dtype)
        return result

    def _device_of(self, name: str) -> torch.device:
        return compat.device_of(self._device_map, name)

    # during the load

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Say whether a parameter is quantised when it is read."""
        return param_name in self.plan.weights

    def get_quantize_ops(self) -> ConversionOps:
        """Return the operation for a weight that reaches none of our converters."""
        if self._operation is None:
            raise RuntimeError("get_quantize_ops comes after update_weight_conversions")
        return self._operation

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        """Return the bytes per element that a parameter will take, for the device map and the warm-up allocation."""
        if (weight := self.plan.weights.get(param_name)) is not None:
            return weight.first_nbytes / param.numel()
        return param.element_size()

    # after the load

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Check that everything arrived, derive the backend's layout, and report."""
        builder, core = self._builder or LoadReportBuilder(), self.quantization_config.core
        if self._packer is not None:
            self._packer.feed.close()
        offload.check_biases(model)
        if self._targets is not None:
            self._targets.check()
        with builder.timing("preparing"):
            settle_all(model, self.plan, self._ranks, self._shares)
            chosen = prepare_model(
                model,
                backend=core.backend,
                fallback=core.fallback,
                backend_options=core.backend_options,
                dtype=self._dtype,
                consume=True,
            )
        if (serialised := self.quantization_config.serialised) is None:
            used = converters.conversions_of(model)
        else:
            used = serialised.used
            self.quantization_config.core = serialised.config or core
            self.quantization_config.serialised = None
        self._undo = undo = Undo.of(used, self.plan, model)
        converters.set_conversions(model, [Loaded(undo)])
        self._unsayable = unsayable(undo.rows, self.plan)
        self.quantization_config.facts = facts(undo, model, self.plan, self.quantization_config.core)
        builder.backend = ", ".join(dict.fromkeys(selection.backend.name for selection in chosen.values()))
        builder.quantizer = ", ".join(self._quantizers.names)
        builder.profile = ", ".join(dict.fromkeys(weight.profile for weight in self.plan.weights.values()))
        read = {} if self._packer is None else self._packer.bytes_read
        count_modules(builder, model, self.plan, read)
        self.report = model.mxfp4_report = builder.build()
        model.num_parameters = LogicalCount(model, self.plan)
        logger.info("%s", self.report.line())
        # What only the load needed: the quantizer is copied and pickled with its model.
        self._packer = self._builder = self._model = self._operation = self._targets = None
        self._headers, self._device_map, self._quantizers = {}, None, DeviceQuantizers()
        return model

    def dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """Put the model's own modules back, with the values of the MXFP4 weights in ``dtype``, or that of the load."""
        self.check_whole("dequantised")
        offload.check_at_home(model, "dequantised")
        return super().dequantize(model, dtype or self._dtype)  # the config of a saved model may name another

    def _dequantize(self, model: Any, dtype: torch.dtype) -> Any:
        for site in self.plan.sites:
            path = below_adapters(model, site.path)
            model.set_submodule(path, widened(model.get_submodule(path), site, dtype))
        compat.forget(model)
        del model.num_parameters
        return model

    # questions

    def check_whole(self, what: str) -> None:
        """Check that the model lies in this process whole, before it is ``what``.

        Raises:
            ConfigError: processes share it.
        """
        check_whole(self._shares, what)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's activations."""
        return self._dtype

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, str]]:
        """Check, before ``save_pretrained`` writes anything, that it will be read again.

        Raises:
            DialectError: it would not.
            ConfigError: processes share the model.
        """
        if self._undo is not None and not getattr(model, "_hf_peft_config_loaded", False):
            self.check_whole("saved")
            check_readable(self._undo, model, self.plan, self.quantization_config, kept_tensors(model))
        return None, {}

    def is_serializable(self) -> bool:
        """Say that ``save_pretrained`` works.

        Raises:
            DialectError: our dialect cannot say everything about the weights.
        """
        if self._unsayable is not None:
            raise self._unsayable
        return True

    @property
    def is_compileable(self) -> bool:
        """Say that ``generate`` may compile the model: the operators of a backend have fakes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that adapters on top of the weights, which are frozen, can be trained."""
        return True
