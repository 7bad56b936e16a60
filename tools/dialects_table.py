"""Make the table of docs/dialects.md: what each dialect recognises, reads and writes, and who else read the result.

    python tools/linked.py tools/dialects_table.py            # the table, from what the code does
    python tools/linked.py tools/dialects_table.py --clients  # load results in the clients that are installed, too

The first is run by a test, so that the page says what is. The second needs transformers, and finds what it finds of
compressed-tensors, torchao, auto-round, amd-quark and gguf; it adds to docs/dialects-clients.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing import material

from mxfp4_core import dialects
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.dialects import Source
from mxfp4_core.dialects.narrow import narrow_kind, read_narrow
from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.jobs import convert_checkpoint, dequantize_checkpoint

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, NOTES = DOCS / "dialects.md", DOCS / "dialects-clients.json"
BEGIN, END = "<!-- made by tools/dialects_table.py -->", "<!-- end -->"
HEAD = ("dialect", "recognised by", "read", "written", "loads in", "checked with")


def rows(folder: Path) -> list[tuple[str, ...]]:
    """Write a checkpoint of each dialect, show it to all, read it, and write it again."""
    made = material.quantised(folder / "made")
    notes = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    found = []
    for name in (*material.DIALECTS, *material.OTHERS):
        checkpoint = open_checkpoint(made[name])
        source = Source.of(checkpoint)
        if kind := narrow_kind(source) if name in ("fp8", "nvfp4") else None:
            reason, count = f"its description: {kind}", len(read_narrow(source, kind).beside)
            readers, read = (
                "vLLM, SGLang, transformers",
                f"values of {count} weights; quantised anew, which rounds",
            )
        else:
            dialect = dialects.get(name)
            reason, contents = dialect.recognise(source) or "", dialect.read(source)
            readers = dialect.readers
            read = (
                f"{len(contents.entries)} weights, bit for bit"
                if contents.entries
                else "values; quantised anew"
            )
        found.append(
            (name, reason, read, written(made, name, folder / name), readers, ", ".join(notes.get(name, [])))
        )
    return found


def written(made: Mapping[str, Path], name: str, target: Path) -> str:
    """Convert to it, and say whether that is exact, or why it is refused."""
    stacked = {"gpt-oss": "native-stacked", "gpt-oss-original": "native-stacked", "deepseek-v4": "native-v4"}
    source = made["mxfp4-core"].parent / stacked.get(name, "mxfp4-core")
    mode = "mxfp4" if name in ("modelopt", "torchao", "torchao-plain") else None
    try:
        convert_checkpoint(source, target, name, activation=mode)
    except Mxfp4Error as error:
        return f"refused: {error.rule}"
    return "where exact, or with `--lossy`" if name in ("fp8", "nvfp4") else "bit for bit"


def table(folder: Path) -> str:
    """Return the table as Markdown."""
    lines = [HEAD, ("--",) * len(HEAD), *((f"`{row[0]}`", *row[1:]) for row in rows(folder))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(text: str, made: str) -> str:
    """Return the page with the table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}"


def tiny_llama(folder: Path) -> Path:
    """Save a Llama of two layers whose sizes are whole blocks of 128."""
    import torch
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=64, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def loaded(path: Path, **settings: Any) -> dict[str, Any]:
    """Load a folder through transformers, and return the values of the linears in its own words."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, **settings)
    found = {}
    for name, module in model.named_modules():
        if not name.endswith("_proj"):
            continue
        weight = getattr(module, "weight", None)
        if hasattr(weight, "dequantize") and type(weight.data).__name__ != "Tensor":
            weight = weight.dequantize(torch.bfloat16)
        elif hasattr(module, "dequant_weight_online"):
            weight = module.dequant_weight_online()
        elif hasattr(module, "weight_quantizer"):  # Quark: unpacks and dequantises when it runs
            weight = module(torch.eye(module.in_features, dtype=torch.bfloat16)).T
        found[f"{name}.weight"] = weight.detach().to(torch.bfloat16)
    return found


def clients() -> dict[str, tuple[str, tuple[str, ...], Callable[[Path], dict[str, Any]]]]:
    """Return the package that reads each dialect, and how."""
    import transformers

    ct = transformers.CompressedTensorsConfig(dequantize=True)
    fp8 = transformers.FineGrainedFP8Config(dequantize=True)
    return {
        "compressed-tensors": ("compressed-tensors", (), lambda path: loaded(path, quantization_config=ct)),
        "nvfp4": ("compressed-tensors", (), lambda path: loaded(path, quantization_config=ct)),
        "fp8": ("transformers", (), lambda path: loaded(path, quantization_config=fp8)),
        "torchao": ("torchao", (), loaded),
        "torchao-plain": ("torchao", (), loaded),
        "auto-round": ("auto-round", (), lambda path: loaded(path, device_map="cpu")),
        "quark": ("amd-quark", (), loaded),
        "gguf": ("gguf", (), lambda path: loaded(path, gguf_file="model.gguf")),
    }


def check_clients(folder: Path) -> dict[str, str]:
    """Load each dialect with its own package, and compare every weight with what `dequantize` makes of it."""
    import torch

    from mxfp4_core import Mxfp4Config
    from mxfp4_core.jobs import quantize_checkpoint

    source = tiny_llama(folder / "llama")
    quantize_checkpoint(
        source, folder / "native", Mxfp4Config(dialect="mxfp4-core", activation="mxfp4"), models="none"
    )
    dequantize_checkpoint(folder / "native", folder / "plain")
    plain = open_checkpoint(folder / "plain")
    found = {}
    for name, (package, _, load) in clients().items():
        try:
            told = f"{package} {version(package)}, transformers {version('transformers')}"
        except PackageNotFoundError:
            continue
        activation = "none" if name == "quark" else None
        convert_checkpoint(folder / "native", folder / name, name, activation=activation)
        values = load(folder / name)
        wanted = [weight for weight in plain.tensors if weight.endswith("_proj.weight")]
        differing = [weight for weight in wanted if not torch.equal(values[weight], plain.load(weight))]
        if differing or len(values) != len(wanted):
            raise SystemExit(f"{name}: {package} reads other values of {differing or sorted(values)}")
        found[name] = f"transformers {version('transformers')}" if package == "transformers" else told
        print(f"{name}: {len(wanted)} weights with the same values in {found[name]}", flush=True)
    check_mixed(source, folder)
    check_experts(folder)
    return found


def check_mixed(source: Path, folder: Path) -> None:
    """Load MXFP4 beside MXFP8 in compressed-tensors, and decompress each linear by the scheme that it found for it."""
    import torch
    import transformers
    from compressed_tensors.compressors import BaseCompressor

    from mxfp4_core import Mxfp4Config
    from mxfp4_core.jobs import quantize_checkpoint

    wide = {"pattern": "mlp.down_proj", "format": "mxfp8"}
    asked = Mxfp4Config(dialect="compressed-tensors", overrides=[wide])
    quantize_checkpoint(source, folder / "mixed", asked, models="none")
    dequantize_checkpoint(folder / "mixed", folder / "mixed-plain")
    plain = open_checkpoint(folder / "mixed-plain")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "mixed", dtype=torch.bfloat16)
    linears = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
    kinds = set()
    for name, module in linears.items():
        scheme = module.quantization_scheme
        kinds.add(scheme.format)
        stored = {key: tensor.data for key, tensor in module.named_parameters()}
        values = BaseCompressor.get_value_from_registry(scheme.format).decompress(stored, scheme)["weight"]
        if not torch.equal(values.to(torch.bfloat16), plain.load(f"{name}.weight")):
            raise SystemExit(f"compressed-tensors reads other values of {name} in a mixed folder")
    if len(kinds) != 2:
        raise SystemExit(f"compressed-tensors sees the formats {sorted(kinds)} in a mixed folder")
    print(f"mixed: {len(linears)} weights with the same values, {' and '.join(sorted(kinds))}", flush=True)


def check_experts(folder: Path) -> None:
    """Load experts in FP8, which are written one by one, in transformers, which stacks them."""
    import torch
    import transformers

    from mxfp4_core import Mxfp4Config
    from mxfp4_core.jobs import quantize_checkpoint

    torch.manual_seed(4)
    config = transformers.Qwen3MoeConfig(
        hidden_size=128, intermediate_size=256, moe_intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_experts=4, num_experts_per_tok=2, vocab_size=64, head_dim=32,
    )  # fmt: skip
    transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "experts")
    quantize_checkpoint(
        folder / "experts", folder / "experts-native", Mxfp4Config(dialect="mxfp4-core"), models="none"
    )
    dequantize_checkpoint(folder / "experts-native", folder / "experts-plain")
    convert_checkpoint(folder / "experts-native", folder / "experts-fp8", "fp8")
    models = transformers.AutoModelForCausalLM
    wide = transformers.FineGrainedFP8Config(dequantize=True)
    made = models.from_pretrained(folder / "experts-fp8", dtype=torch.bfloat16, quantization_config=wide)
    states = made.state_dict(), models.from_pretrained(folder / "experts-plain").state_dict()
    if differing := [name for name in states[1] if not torch.equal(states[0][name], states[1][name])]:
        raise SystemExit(f"transformers reads other values of {differing} in FP8")
    print(f"experts in fp8: {len(states[1])} tensors with the same values in transformers", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clients", action="store_true", help="load results in the clients that are installed"
    )
    with tempfile.TemporaryDirectory() as room:
        if parser.parse_args().clients:
            warnings.simplefilter("ignore")  # the vendors' own
            notes = json.loads(NOTES.read_text()) if NOTES.exists() else {}
            for name, told in check_clients(Path(room) / "clients").items():
                notes[name] = sorted({*notes.get(name, []), told})
            NOTES.write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(page(PAGE.read_text(), table(Path(room) / "table")))


if __name__ == "__main__":
    main()
