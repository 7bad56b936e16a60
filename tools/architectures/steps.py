"""The steps of a trial, each with what must hold after it."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import mxfp4_transformers
from architectures import ignoring, judge
from architectures.catalogue import Kind
from architectures.commands import command, done, told
from architectures.inputs import accepted, flat, run
from architectures.rows import Fault
from mxfp4_core.modules import Mxfp4Module


@dataclass
class Trial:
    """What is known of one model while it is tried.

    Attributes:
        kind: its type.
        work: a folder of its own, with the unquantised model in ``bf16``.
        settings: what of a config is needed, empty where nothing is.
        loaded: the quantised model, in BF16.
        plain: the unquantised one, in BF16.
        weights: what the loader quantised, by name.
        forward: how it was run.
        ran: how many quantised modules that reached.
        given: what it is run with.
        state: what the quantised model held when it was loaded; some change when they are run.
    """

    kind: Kind
    work: Path
    settings: dict[str, Any]
    loaded: Any
    plain: Any
    weights: dict[str, Any]
    forward: str = ""
    ran: str = ""
    given: dict[str, Any] | None = None
    state: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = {name: tensor.clone() for name, tensor in self.loaded.state_dict().items()}

    @property
    def source(self) -> Path:
        """The unquantised folder."""
        return self.work / "bf16"

    @property
    def options(self) -> list[str]:
        """The settings as options of a command."""
        off = [] if self.settings.get("family_defaults", True) else ["--no-family-defaults"]
        return off + [word for pattern in self.settings.get("ignore", ()) for word in ("--ignore", pattern)]


def load(kind: Kind, folder: Path, dtype: torch.dtype | None = None, **keywords: Any) -> Any:
    """Load a model as people do, without a word on the terminal."""
    if dtype is not None:
        keywords["dtype"] = dtype
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return kind.auto_class.from_pretrained(folder, **keywords).eval()


def load_quantized(kind: Kind, folder: Path, dtype: torch.dtype, settings: dict[str, Any]) -> Any:
    """Load a model and quantise it while it is read."""
    config = mxfp4_transformers.Mxfp4Config(**settings)
    return load(kind, folder, dtype, quantization_config=config)


def nothing(source: Path) -> None:
    """Check that the commands, too, find nothing to quantise."""
    code, out, messages = command("plan", "plan", source, "--json")
    if "nothing to quantise" not in out + messages:
        raise Fault(
            "plan", f"the loader finds nothing to quantise, plan says {code}: {(out + messages)[-300:]}"
        )


def check_bytes(trial: Trial) -> None:
    """Codes and scales are those of `quantize`, and all else is unchanged."""
    judge.same_bytes("bytes", trial.loaded, trial.plain, trial.weights)
    rows = {name: tuple(parameter.shape) for name, parameter in trial.plain.named_parameters()}
    head = trial.plain.get_output_embeddings() if hasattr(trial.plain, "get_output_embeddings") else None
    for path, module in trial.plain.named_modules():
        if (isinstance(module, nn.Embedding) or module is head) and f"{path}.weight" in trial.weights:
            raise Fault("bytes", f"{path} is an embedding or the output head, {rows.get(f'{path}.weight')}")


def check_forward(trial: Trial) -> None:
    """In FP32 the model gives what the one with dequantised weights gives; in BF16 it runs where that one does."""
    quantized = load_quantized(trial.kind, trial.source, torch.float32, trial.settings)
    plain = load(trial.kind, trial.source, torch.float32)
    judge.widen(plain, trial.weights)
    trial.given, wanted, why = accepted(plain)
    if trial.given is None:
        trial.forward = f"not run: {why}"
    else:
        with _watched(quantized) as reached:
            output = _our(run, quantized, trial.given)
        judge.same_output("forward", output, wanted)
        trial.forward = "equal"
        _check_bf16(trial)
    reached = reached if trial.given is not None else set()
    every = {path for path, module in quantized.named_modules() if isinstance(module, Mxfp4Module)}
    trial.ran = f"{len(reached)}/{len(every)}"
    for path in sorted(every - reached):
        _check_alone(path, quantized.get_submodule(path), plain.get_submodule(path))


def _our(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:
        raise Fault(
            "forward", f"crashes: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error


def _check_bf16(trial: Trial) -> None:
    try:
        finite = [each.isfinite().all() for each in flat(run(trial.plain, trial.given or {}))]
    except Exception:  # then the unquantised model does not run in BF16 either
        trial.forward = "equal in FP32; BF16 does not run unquantised"
        return
    output = list(flat(_our(run, trial.loaded, trial.given)))
    if len(output) != len(finite) or any(
        f and not o.isfinite().all() for f, o in zip(finite, output, strict=True)
    ):
        raise Fault("forward", "BF16 gives NaN or infinity, the unquantised model does not")


def _check_alone(path: str, module: Any, plain: nn.Module) -> None:
    """Compare a module that the forward pass did not reach."""
    if not isinstance(getattr(plain, "weight", None), nn.Parameter) or plain.weight.ndim != 2:
        return
    k = int(getattr(plain, "in_features", plain.weight.shape[0]))
    x = torch.randn(3, k, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        judge.same_output(f"forward of {path}", module(x), plain(x))


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[set[str]]:
    reached: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, path=path: reached.add(path))
        for path, module in model.named_modules()
        if isinstance(module, Mxfp4Module)
    ]
    try:
        yield reached
    finally:
        for hook in hooks:
            hook.remove()


def check_saved(trial: Trial) -> None:
    """What `save_pretrained` writes is read again, with the same bits and the same output, and is good."""
    folder = trial.work / "saved"
    trial.loaded.save_pretrained(folder)
    again = load(trial.kind, folder, torch.bfloat16)
    judge.same_state("reload", again.state_dict(), trial.state)
    if trial.given is not None and trial.forward == "equal":
        judge.same_output("reload", run(again, trial.given), run(trial.loaded, trial.given), limit=0)
    done("verify what was saved", "verify", folder, "--source", trial.source, "--json")


def check_plan(trial: Trial) -> None:
    """`mxfp4 plan` decides as the loader did."""
    plan = told("plan", "plan", trial.source, *trial.options)
    planned = {row["name"] for row in plan["tensors"] if row["quantize"]}
    given = trial.loaded.hf_quantizer.plan.weights
    from mxfp4_core.config import Mxfp4Config
    from mxfp4_core.jobs import plan_checkpoint

    result = plan_checkpoint(trial.source, Mxfp4Config.from_dict(trial.settings))
    if result.view is None:
        raise Fault("plan", f"nobody knows the model: {result.kinds}")
    by_command = {name for row in planned for name in result.view.tensors[row].parameters}
    if by_command != set(given):
        raise Fault(
            "plan",
            f"plan alone: {sorted(by_command - set(given))[:4]}; loader alone: {sorted(set(given) - by_command)[:4]}",
        )


def check_quantized(trial: Trial) -> None:
    """`mxfp4 quantize` writes a folder that is good, and that loads as the model that was quantised while loading."""
    native, default = trial.work / "native", trial.work / "default"
    done("quantize", "quantize", trial.source, native, "--dialect", "mxfp4-core", "--quiet", *trial.options)
    done("verify", "verify", native, "--source", trial.source, "--json")
    again = load(trial.kind, native, torch.bfloat16)
    judge.same_state("read the folder", again.state_dict(), trial.state)
    result = told("quantize", "quantize", trial.source, default, *trial.options)
    if not result.get("load"):
        raise Fault("hint", f"quantize names nothing that loads the folder: {result}")
    hinted = _hinted(result["load"])
    if type(hinted) is not type(trial.loaded):
        raise Fault(
            "hint", f"{type(hinted).__name__} instead of {type(trial.loaded).__name__}: {result['load']}"
        )
    if not isinstance(hinted.hf_quantizer, mxfp4_transformers.Mxfp4Quantizer):
        raise Fault("hint", f"{type(hinted.hf_quantizer).__name__} of others reads it: {result['load']}")
    judge.same_state("hint", hinted.state_dict(), trial.state, wider=True)


def _hinted(line: str) -> Any:
    *imports, call = line.partition("  #")[0].split("; ")
    space: dict[str, Any] = {}
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        exec("; ".join(imports), space)
        return eval(call, space)


def check_ignore(trial: Trial) -> None:
    """A module is kept under its name in the model and in the file, by `plan` and by a load."""
    weights = {*trial.loaded.hf_quantizer.plan.weights}
    found = ignoring.kept(trial.source, trial.settings, weights)
    if found is None:
        return
    spelling, wanted = found
    asked = {**trial.settings, "ignore": [*trial.settings.get("ignore", ()), spelling]}
    again = load_quantized(trial.kind, trial.source, torch.bfloat16, asked)
    if (left := {*again.hf_quantizer.plan.weights}) != weights - wanted:
        raise Fault("ignore", f"a load with {spelling!r} differs: {sorted(left ^ (weights - wanted))[:3]}")


def check_dequantized(trial: Trial) -> None:
    """`dequantize()` gives the unquantised model with the values of MXFP4."""
    model = trial.loaded
    model.dequantize()
    judge.widen(trial.plain, trial.weights)
    judge.same_state("dequantize", model.state_dict(), trial.plain.state_dict())
    if trial.given is not None and trial.forward == "equal":
        judge.same_output("dequantize", run(model, trial.given), run(trial.plain, trial.given), limit=0)


STEPS: Final[dict[str, Callable[[Trial], None]]] = {
    "bytes": check_bytes,
    "forward": check_forward,
    "save": check_saved,
    "plan": check_plan,
    "quantize": check_quantized,
    "ignore": check_ignore,
    "dequantize": check_dequantized,
}
"""In this order; the last one changes the model."""
