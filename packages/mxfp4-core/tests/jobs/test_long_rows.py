"""Memory does not follow the size of a row, or of a matrix with K before N: measured for each job in a process."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mxfp4_core import Mxfp4Config
from mxfp4_core.dialects import beside
from mxfp4_core.errors import NonFiniteError
from mxfp4_core.jobs import pieces as pieces_module
from mxfp4_core.jobs import units as units_module
from mxfp4_core.jobs.dequantize import dequantize_checkpoint
from mxfp4_core.jobs.quantize import quantize_checkpoint
from mxfp4_core.jobs.verify import verify_checkpoint
from mxfp4_core.report import measure

Save = Callable[..., Path]
UP = "model.layers.0.mlp.up_proj.weight"
C_FC = "transformer.h.0.mlp.c_fc.weight"
SIZE = 128 << 20

CODE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from mxfp4_core import Mxfp4Config
from mxfp4_core.jobs import pieces, units
from mxfp4_core.jobs.convert import convert_checkpoint
from mxfp4_core.jobs.dequantize import dequantize_checkpoint
from mxfp4_core.jobs.plan import plan_checkpoint
from mxfp4_core.jobs.quantize import quantize_checkpoint
from mxfp4_core.jobs.verify import verify_checkpoint
from mxfp4_core.report import compare, measure

units.CHUNK_BYTES, pieces.CHUNK_VALUES = 8 << 20, 1 << 20

def jobs(folder):
    source, codes = folder / "source", folder / "codes"
    yield "plan", lambda: plan_checkpoint(source)
    yield "quantize", lambda: quantize_checkpoint(source, codes, Mxfp4Config(dialect="mxfp4-core"))
    yield "verify --source", lambda: verify_checkpoint(codes, source=source)
    yield "verify --against", lambda: verify_checkpoint(codes, against=source)
    yield "report", lambda: measure(source, codes)
    yield "report of one rule", lambda: compare(source, ["even/even"])
    yield "dequantize", lambda: dequantize_checkpoint(codes, folder / "values")
    yield "convert", lambda: convert_checkpoint(codes, folder / "native", "mxfp4-core")

def status(word):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(word)) * 1024

small, large = map(Path, sys.argv[1:])
for (name, warm), (_, job) in zip(jobs(small), jobs(large)):
    warm()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    job()
    print(f"{name}: {status('VmHWM') - before}")
"""


def of_zeros(folder: Path, tensors: dict[str, tuple[int, ...]], model: str) -> None:
    """Write a checkpoint without writing its data."""
    folder.mkdir(parents=True)
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps({"model_type": model}))


@pytest.mark.parametrize(
    ("name", "large", "small", "model"),
    [
        (UP, (1, SIZE // 2), (1, 4096), "llama"),
        (C_FC, (8192, SIZE // 16384), (64, 64), "gpt2"),
        ("model.embed_tokens.weight", (1, SIZE // 2), (1, 4096), "llama"),
    ],
    ids=["one row", "K before N", "one row that is kept"],
)
def test_memory_is_that_of_chunks(
    tmp_path: Path, name: str, large: tuple[int, ...], small: tuple[int, ...], model: str
) -> None:
    for folder, shape in (("small", small), ("large", large)):
        other = UP if name != UP else UP.replace("0", "1")
        of_zeros(tmp_path / folder / "source", {name: shape, other: (64, 64)}, model)
    command = [sys.executable, "-c", CODE, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown = {name: int(size) for name, size in (line.split(": ") for line in done.stdout.splitlines())}
    assert len(grown) == 8
    assert {name: size >> 20 for name, size in grown.items() if size > SIZE * 3 // 2} == {}


def all_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("format", ["mxfp4", "mxfp4-dual"])
@pytest.mark.parametrize(
    ("name", "shape", "model"),
    [
        (UP, (3, 1320), "llama"),
        (C_FC, (1320, 33), "gpt2"),
        ("model.layers.0.mlp.experts.down_proj", (2, 5, 1344), "other"),
        ("model.layers.0.mlp.experts.down_proj", (2, 1344, 5), "gpt_oss"),
    ],
)
def test_pieces_of_rows_give_the_same_bytes_and_figures(
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    shape: tuple[int, ...],
    model: str,
    format: str,
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5)).bfloat16()
    source = save({name: weight}, config={"model_type": model})
    config = Mxfp4Config.from_dict({"tail": "pad", "format": format, "dialect": "mxfp4-core"})
    found = []
    for chunk in (1 << 22, 256):
        monkeypatch.setattr(units_module, "CHUNK_BYTES", chunk)
        monkeypatch.setattr(pieces_module, "CHUNK_VALUES", chunk)
        monkeypatch.setattr(beside, "_VALUES", chunk)
        codes, values = (source.parent / f"{kind}-{chunk}" for kind in ("codes", "values"))
        quantize_checkpoint(source, codes, config)
        assert not verify_checkpoint(codes, source=source).findings
        against = [str(each) for each in verify_checkpoint(codes, against=source).layers]
        if format == "mxfp4":
            (layer,) = measure(source, codes).layers
            against.append(str(layer.results))
        dequantize_checkpoint(codes, values)
        found.append((all_of(codes), against, all_of(values)))
    (one, *figures), (two, *others) = ((a, *b) for a, *b in found)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    if format == "mxfp4":  # values of two levels are compared as such, and summed up piece by piece
        assert figures[0] == others[0]
    assert all(torch.equal(figures[1][name], others[1][name]) for name in figures[1])


@pytest.mark.parametrize(("name", "shape", "model"), [(UP, (3, 96), "llama"), (C_FC, (96, 3), "gpt2")])
def test_what_is_not_finite_is_named_where_it_is(
    save: Save, monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...], model: str
) -> None:
    weight, at = torch.ones(shape).bfloat16(), (1, 77) if model == "llama" else (77, 1)
    weight[at] = torch.inf
    monkeypatch.setattr(units_module, "CHUNK_BYTES", 64)
    source = save({name: weight}, config={"model_type": model})
    with pytest.raises(NonFiniteError, match=re.escape(str(list(at))[1:-1])):
        quantize_checkpoint(source, source.parent / "target")
