from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.dialects import Source, concat, interleave, stack
from mxfp4_core.dialects.recipes import Read, Recipe
from mxfp4_core.errors import CheckpointError, DialectError

Save = Callable[..., Path]


class Memory:
    """Tensors in memory as a source, which counts the bytes that are read."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors, self.bytes = tensors, 0

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        data = self.tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        buffer[:] = data[start : start + len(buffer)].data
        self.bytes += len(buffer)


A = torch.arange(4 * 6 * 8, dtype=torch.uint8).reshape(4, 6, 8)
B = 255 - A
MEMORY = Memory({"a": A, "b": B})
READ_A, READ_B = Read("U8", (4, 6, 8), "a"), Read("U8", (4, 6, 8), "b")

MADE: dict[str, tuple[Recipe, torch.Tensor]] = {
    "read": (READ_A, A),
    "rows": (READ_A.take(1, 3), A[1:3]),
    "every other row": (READ_A.take(1, step=2), A[1::2]),
    "every other of axis 1": (READ_A.take(0, 6, 2, axis=1), A[:, 0:6:2]),
    "columns": (READ_A.take(2, 5, axis=2), A[:, :, 2:5]),
    "nothing": (READ_A.take(2, 2, axis=1), A[:, 2:2]),
    "reshape": (READ_A.reshape(24, 8), A.reshape(24, 8)),
    "reshape of a cut": (READ_A.take(1, 5, axis=1).reshape(16, 2, 4), A[:, 1:5].reshape(16, 2, 4)),
    "permute": (READ_A.permute(0, 2, 1), A.permute(0, 2, 1)),
    "permute rows": (READ_A.permute(2, 0, 1), A.permute(2, 0, 1)),
    "stack": (stack([READ_A, READ_B]), torch.stack([A, B])),
    "stack inside": (stack([READ_A, READ_B], 2), torch.stack([A, B], 2)),
    "concat": (concat([READ_A, READ_B.take(1, 2)]), torch.cat([A, B[1:2]])),
    "concat inside": (concat([READ_A, READ_B], 1), torch.cat([A, B], 1)),
    "interleave": (interleave([READ_A, READ_B], 1), torch.stack([A, B], 2).reshape(4, 12, 8)),
    "interleave and back": (interleave([READ_A, READ_B], 1).take(1, step=2, axis=1), B),
    "wider elements": (READ_A.reinterpret("F32"), A.view(torch.float32)),
    "signed": (READ_A.take(0, 4, 2, axis=1).reinterpret("I8"), A[:, 0:4:2].contiguous().view(torch.int8)),
    "experts of experts": (
        stack([READ_A.take(e, e + 1).reshape(6, 8).take(step=3) for e in (3, 0)]).reshape(4, 8),
        torch.cat([A[3, ::3], A[0, ::3]]),
    ),
}


def same(made: torch.Tensor, expected: torch.Tensor) -> bool:
    equal = made.dtype == expected.dtype and made.shape == expected.shape
    return equal and torch.equal(
        made.reshape(-1).view(torch.uint8), expected.contiguous().reshape(-1).view(torch.uint8)
    )


@pytest.mark.parametrize(("recipe", "expected"), MADE.values(), ids=MADE.keys())
def test_a_recipe_makes_what_torch_makes(recipe: Recipe, expected: torch.Tensor) -> None:
    assert recipe.shape == tuple(expected.shape)
    assert recipe.nbytes == expected.nbytes
    assert same(recipe.load(MEMORY), expected)
    for start in range(expected.shape[0] + 1):
        for stop in range(start, expected.shape[0] + 1):
            assert same(recipe.load(MEMORY, start, stop), expected[start:stop])
    raw = b"".join(bytes(piece) for piece in recipe.pieces(MEMORY, 10))
    assert raw == expected.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    again = pickle.loads(pickle.dumps(recipe))
    assert again == recipe and hash(again) == hash(recipe)


@given(data=st.data())
def test_any_chain_of_transforms(data: st.DataObject) -> None:
    recipe: Recipe = READ_A
    expected = A
    for _ in range(data.draw(st.integers(1, 5))):
        match data.draw(st.sampled_from(["take", "permute", "reshape", "interleave", "stack"])):
            case "take":
                axis = data.draw(st.integers(0, expected.ndim - 1))
                size = expected.shape[axis]
                start = data.draw(st.integers(0, size))
                stop, step = data.draw(st.integers(start, size)), data.draw(st.integers(1, 3))
                cut = (slice(None),) * axis + (slice(start, stop, step),)
                recipe, expected = recipe.take(start, stop, step, axis=axis), expected[cut]
            case "permute":
                axes = data.draw(st.permutations(range(expected.ndim)))
                recipe, expected = recipe.permute(*axes), expected.permute(*axes)
            case "reshape":
                size = expected.numel()
                n = data.draw(st.sampled_from([n for n in range(1, 9) if size % n == 0]))
                recipe, expected = recipe.reshape(size // n, n), expected.reshape(size // n, n)
            case "interleave":
                shape = (expected.shape[0] * 2, *expected.shape[1:])
                recipe, expected = interleave([recipe, recipe]), torch.stack([expected] * 2, 1).reshape(shape)
            case "stack":
                recipe, expected = stack([recipe, recipe]), torch.stack([expected] * 2)
    assert recipe.shape == tuple(expected.shape)
    start = data.draw(st.integers(0, expected.shape[0]))
    stop = data.draw(st.integers(start, expected.shape[0]))
    assert torch.equal(recipe.load(MEMORY, start, stop), expected[start:stop])


def test_only_the_range_is_read() -> None:
    memory = Memory({"a": A, "b": B})
    experts = stack([READ_A.take(e, e + 1).reshape(6, 8) for e in range(4)])
    experts.load(memory, 1, 3)
    assert memory.bytes == 2 * 48
    memory.bytes = 0
    interleave([READ_A.reshape(24, 8), READ_B.reshape(24, 8)]).load(memory, 4, 8)
    assert memory.bytes == 4 * 8
    memory.bytes = 0
    READ_A.take(2, 3).reshape(6, 8).load(memory, 5, 6)
    assert memory.bytes == 8


def test_scalars_and_narrow_dtypes(save: Save) -> None:
    scales = torch.tensor([[1.0, 2.0]]).to(torch.float8_e8m0fnu)
    checkpoint = open_checkpoint(save({"s": torch.tensor(3.0), "e": scales}))
    source = Source.of(checkpoint)
    assert source.tensor("s").load(checkpoint).item() == 3.0
    assert source.tensor("e").load(checkpoint).dtype == torch.float8_e8m0fnu
    assert source.tensor("e").reinterpret("U8").load(checkpoint).tolist() == [[127, 128]]
    four = Read("F4", (4, 6, 8), "a")
    assert four.reinterpret("U8") == Read("U8", (4, 6, 4), "a")
    assert four.load(MEMORY).shape == (4, 6, 4)
    assert four.load(MEMORY).dtype == torch.float4_e2m1fn_x2


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "another size": (lambda: READ_A.reshape(5, 5), "[5, 5]"),
    "a negative size": (lambda: READ_A.reshape(-4, -48), "[-4, -48]"),
    "an axis twice": (lambda: READ_A.permute(0, 0, 1), "[0, 0, 1]"),
    "behind the end": (lambda: READ_A.take(0, 5), "0:5:1 of axis 0"),
    "no such axis": (lambda: READ_A.take(axis=3), "axis 3"),
    "backwards": (lambda: READ_A.take(step=-1), "0:4:-1"),
    "another width": (lambda: READ_A.take(step=2).reinterpret("F32"), "U8 [2, 6, 8] as F32"),
    "half an element": (lambda: Read("U8", (3,), "a").reinterpret("F32"), "U8 [3] as F32"),
    "no dtype": (lambda: READ_A.reinterpret("FLOAT"), "'FLOAT'"),
    "a cut through a byte": (lambda: Read("F4", (4,), "a").take(1), "dtype F4"),
    "unequal shapes": (lambda: stack([READ_A, READ_A.take(1)]), "(3, 6, 8)"),
    "unequal rows": (lambda: concat([READ_A, READ_A.reshape(24, 8)]), "(24, 8)"),
    "unequal dtypes": (lambda: stack([READ_A, READ_A.reinterpret("I8")]), "['I8', 'U8']"),
    "nothing to stack": (lambda: stack([]), "[]"),
    "no axis to stack": (lambda: stack([READ_A], 4), "axis 4"),
    "no axis to join": (lambda: concat([READ_A], 3), "axis 3"),
    "no axis to alternate": (lambda: interleave([READ_A], 3), "axis 3"),
    "rows outside": (lambda: READ_A.load(MEMORY, 2, 5), "rows 2 to 5"),
    "six bits": (lambda: Read("F6_E2M3", (4,), "a").load(MEMORY), "F6_E2M3"),
    "no such tensor": (lambda: Source({}, {}).tensor("x"), "'x'"),
}


@pytest.mark.parametrize(("make", "seen"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused(make: Callable[[], object], seen: str) -> None:
    with pytest.raises(DialectError) as caught:
        make()
    assert seen in caught.value.seen
    assert all((caught.value.what, caught.value.rule, caught.value.fix))


def test_documents_are_read_when_asked_for(save: Save, tmp_path: Path) -> None:
    folder = save({"a": torch.ones(1)}, config={"quantization_config": [1]})
    (folder / "more.json").write_text('{"x": 1}')
    (folder / "bad.json").write_text("{")
    source = Source.of(open_checkpoint(folder))
    assert source.described == {}
    assert source.document("more.json") == {"x": 1}
    assert source.document("other.json") is None
    assert source.document("../secret.json") is None
    assert source.metadata() == {"format": "pt"}
    with pytest.raises(CheckpointError, match=r"bad\.json"):
        source.document("bad.json")
