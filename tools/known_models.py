"""Write down what transformers says about its models, so that `mxfp4 plan` need not import it.

Usage: python tools/linked.py tools/known_models.py [--only ARCHITECTURE ...]

Each class is built on the meta device from its default config and from probes, each with one setting changed; the
view of the adapter is taken of each, under every kind of name that a file may have. What is the same in all of them is
a row of the table; a setting that changes a row is held to the value for which it was seen; a name whose facts differ
is left out. Each row is then held against the library, with several settings changed at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from known_probes import FREE, Config, Seen, base_config, combined, flat, probe
from known_rows import Table
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mxfp4_transformers import meta
from mxfp4_transformers_models.row import Row
from mxfp4_transformers_models.settings import UncertainError

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "integration" / "mxfp4-transformers" / "src" / "mxfp4_transformers_models" / "known"
LARGEST = 20_000
"""Bytes of a row beyond which its layers have too little in common."""

TYPES = {
    "MODEL_FOR_CAUSAL_LM": """
        apertus arcee bloom codegen cohere cohere2 deepseek_v2 deepseek_v3 deepseek_v32 dots1
        ernie4_5 ernie4_5_moe exaone4 falcon flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe
        gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid granitemoeshared
        helium jamba lfm2 lfm2_moe llama llama4_text mamba mamba2 minimax minimax_m2 ministral3
        mistral mixtral mpt nemotron nemotron_h olmo olmo2 olmo3 olmoe opt phi phi3 phimoe qwen2
        qwen2_moe qwen3 qwen3_5_text qwen3_5_moe_text qwen3_moe qwen3_next seed_oss smollm3
        solar_open stablelm starcoder2""",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM": """
        bart marian mbart mt5 pegasus t5 umt5""",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ": """
        whisper""",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT": """
        gemma3 internvl llama4 llava mistral3 paligemma qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe
        qwen3_vl qwen3_vl_moe""",
    "MODEL_FOR_MASKED_LM": "albert bert camembert deberta_v2 distilbert electra modernbert roberta xlm-roberta",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION": "bert deberta_v2 distilbert modernbert roberta xlm-roberta",
    "MODEL_FOR_IMAGE_CLASSIFICATION": "deit dinov2 siglip vit",
    "MODEL": "bert clip dinov2 distilbert llama mistral modernbert qwen3 roberta siglip t5 vit xlm-roberta",
}
"""Model types by the mapping of transformers that chooses their class: what people use most."""


def classes() -> Iterator[Any]:
    """Yield every class of the model types that are in the table."""
    done = set()
    for mapping, model_type in (
        (mapping, each) for mapping, types in TYPES.items() for each in types.split()
    ):
        given = getattr(modeling_auto, f"{mapping}_MAPPING_NAMES").get(model_type, ())
        for name in (given,) if isinstance(given, str) else given:
            kind = getattr(transformers, name, None)
            if name not in done and model_type in CONFIG_MAPPING and kind is not None:
                done.add(name)
                yield kind


def differences(row: Mapping[str, Any], seen: Sequence[Seen], configs: Sequence[Config]) -> Iterator[str]:
    """Yield where a row says something else than the library about what was seen."""
    for each, config in zip(seen, configs, strict=True):
        for label, (view, shapes) in each.views.items():
            headers = {name: ("BF16", shape) for name, shape in shapes.items()}
            try:
                parameters, tensors = Row(row, config).read(headers)
            except UncertainError as error:
                if not each.changed and label in ("own", "saved"):
                    yield f"the base config, {label}: {error}"
                continue
            if tensors != view.tensors:
                wrong = next(name for name in headers if tensors.get(name) != view.tensors.get(name))
                yield f"{each.changed}, {label}: {wrong}: {tensors.get(wrong)}, {view.tensors.get(wrong)}"
            for name, parameter in parameters.items():
                if parameter != view.parameters.get(name):
                    yield f"{each.changed}, {label}: {parameter}, {view.parameters.get(name)}"
                    break


def row_of(kind: Any) -> dict[str, Any]:
    """Return the row of a class, after holding it against the library."""
    config = base_config(kind)
    pairs = list(probe(kind, config))
    seen = [each for each, _ in pairs]
    tried = [path for path, _ in flat(config) if not FREE.search(path)]
    row = Table(kind, seen, tried).build()
    pairs += combined(kind, config, 8)
    if wrong := list(differences(row, *zip(*pairs, strict=True))):
        raise ValueError(f"{len(wrong)} differences, {wrong[0]}")
    return row


def main() -> None:
    """Make the table of the installed release, or some rows of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="replace the rows of these classes alone")
    only = parser.parse_args().only
    transformers.utils.logging.set_verbosity_error()
    path = TABLES / f"{meta.VERSION}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if only and path.exists() else {}
    for kind in classes():
        if only and kind.__name__ not in only:
            continue
        try:
            row = json.loads(json.dumps(row_of(kind)))
        except ValueError as error:
            print(f"{kind.__name__} is left out: {str(error)[:400]}", flush=True)
            continue
        size = len(json.dumps(row))
        if size > LARGEST:
            print(f"{kind.__name__} is left out: {size} bytes", flush=True)
            continue
        rows[kind.__name__] = row
        print(f"{kind.__name__}: {size} bytes; held to {row['settled']}", flush=True)
    table = {"types": sorted(CONFIG_MAPPING), "rows": dict(sorted(rows.items()))}
    text = written(table)
    TABLES.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"{len(rows)} classes, {len(text)} bytes")


def written(table: Mapping[str, Any]) -> str:
    """Return a table as JSON, one line for each fact of a row, so that a change shows as a line."""
    lines = ['{"types": ' + json.dumps(table["types"]) + ',\n"rows": {']
    for name, row in table["rows"].items():
        lines.append(f"{json.dumps(name)}: {{")
        for key, value in row.items():
            if key in ("parameters", "names") and value:
                lines.append(f" {json.dumps(key)}: {{")
                lines += [f"  {json.dumps(each)}: {json.dumps(facts)}," for each, facts in value.items()]
                lines[-1] = lines[-1][:-1] + "},"
            else:
                lines.append(f" {json.dumps(key)}: {json.dumps(value)},")
        lines[-1] = lines[-1][:-1] + "},"
    lines[-1] = lines[-1].rstrip(",")
    return "\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    main()
