from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mxfp4_core.backend import registry, warmup
from mxfp4_core.backend.answers import No
from mxfp4_core.backend.asking import choices_of, kernels_of
from mxfp4_core.backend.choices import Choice, tabulate
from mxfp4_core.backend.compiled import Kernel, Kernels
from mxfp4_core.backend.protocol import Backend
from mxfp4_core.backend.warmup import compile_all
from mxfp4_core.cli import app, main
from mxfp4_core.errors import BackendError, ConfigError


class Compiling:
    """A backend as far as warm-up looks; it compiles into a set."""

    def __init__(self, *names: str, broken: str = "") -> None:
        self.name, self.names, self.broken = "compiling", names, broken
        self.kept: set[str] = set()

    def kernels(self) -> Kernels:
        def compile(name: str) -> None:
            if name == self.broken:
                raise BackendError(name, seen="a typing error", rule="it compiles", fix="report it")
            self.kept.add(name)

        rows = [Kernel(name, name in self.kept, lambda name=name: compile(name)) for name in self.names]
        return Kernels("/somewhere", tuple(rows))


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Any:
    def replace(**backends: Any) -> None:
        plugins = {
            name: SimpleNamespace(
                name=name, load=lambda one=one: one, distribution=f"{name} 1.0", advice="remove it"
            )
            for name, one in backends.items()
        }
        monkeypatch.setattr(warmup, "installed", lambda: plugins)

    return replace


def run(*options: str) -> Result:
    return CliRunner().invoke(app, ["warmup", *options])


def states(done: Result) -> Mapping[str, str]:
    (one,) = json.loads(done.output)["backends"]
    return {kernel["name"]: kernel["state"] for kernel in one["kernels"]}


def test_kernels_are_compiled_once(offer: Any) -> None:
    offer(compiling=Compiling("a", "b"))
    assert states(run("--dry-run", "--json")) == {"a": "missing", "b": "missing"}
    first, second = run(), run()
    assert first.exit_code == second.exit_code == 0
    assert "2 kernels, 2 compiled now, 0 cached before" in first.output and "/somewhere" in first.output
    assert "2 kernels, 0 compiled now, 2 cached before" in second.output
    assert states(run("--json")) == {"a": "cached", "b": "cached"}


def test_a_dry_run_compiles_nothing(offer: Any) -> None:
    one = Compiling("a")
    offer(compiling=one)
    assert "1 kernel, 1 missing" in run("--dry-run").output and one.kept == set()


def test_a_log_says_at_the_start_how_much_there_is_to_do(offer: Any) -> None:
    offer(compiling=Compiling("a", "b"))
    assert run("--dry-run").stderr == ""
    assert run().stderr == "compiling 2 kernels, which can take minutes\n"
    assert run().stderr == "" and run("--quiet").stderr == ""
    offer(compiling=Compiling("a"))
    assert run("--quiet").stderr == ""


def test_a_backend_without_kernels_says_so() -> None:
    done = run("--backend", "reference")
    assert done.exit_code == 0 and done.output == "reference: compiles nothing\n"


def test_a_backend_that_does_not_know_the_members_has_none() -> None:
    old: Any = SimpleNamespace(name="old")
    assert kernels_of(old) is None and choices_of(old, None) == ()  # type: ignore[arg-type]


def test_one_failure_is_told_and_harms_no_other_backend(offer: Any) -> None:
    def raises() -> Kernels:
        raise ZeroDivisionError("oh")

    good, no = Compiling("a"), No("its import raised", "update it")
    offer(bad=Compiling("x", broken="x"), dead=no, good=good, odd=SimpleNamespace(name="odd", kernels=raises))
    done = run()
    assert done.exit_code == 1 and good.kept == {"a"}
    for words in ("a typing error", "report it", "its import raised", "update it", "ZeroDivisionError: oh"):
        assert words in done.output
    rows = {one["backend"]: one["error"] for one in json.loads(run("--json").output)["backends"]}
    assert rows["good"] is None and rows["bad"]["fix"] == "report it" and rows["odd"]["fix"] == "remove it"


@pytest.mark.parametrize(
    ("name", "says"), [("npu", "install mxfp4-npu"), ("refrence", "did you mean 'reference'?")]
)
def test_a_backend_that_is_not_there(
    name: str, says: str, offer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(reference=SimpleNamespace(name="reference"))
    with pytest.raises(SystemExit) as stop:
        main(["warmup", "--backend", name])
    assert stop.value.code == 1 and says in capsys.readouterr().err


def test_no_jobs_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        next(warmup.warm_up(jobs=0))


def test_several_are_compiled_at_a_time() -> None:
    together = threading.Barrier(3, timeout=60)
    kernels = [Kernel(str(i), False, together.wait) for i in range(3)]
    seen: list[tuple[int, int]] = []
    done = compile_all(kernels, jobs=3, progress=lambda *counts: seen.append(counts))
    assert [one.name for one in done] == ["0", "1", "2"]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_first_failure_ends_it() -> None:
    begun: list[int] = []

    def compile(number: int) -> None:
        begun.append(number)
        raise BackendError(str(number), seen="", rule="", fix="")

    kernels = [Kernel(str(i), False, lambda i=i: compile(i)) for i in range(100)]
    with pytest.raises(BackendError):
        compile_all(kernels, jobs=1)
    assert len(begun) < 100


def test_a_table_is_what_the_function_answers() -> None:
    rows = tabulate(lambda m: ("small", {"tile": 8}) if m <= 3 else ("large", {"tile": 16 + m // 10}), 15)
    assert rows == (
        Choice(1, 3, "small", {"tile": 8}),
        Choice(4, 9, "large", {"tile": 16}),
        Choice(10, 15, "large", {"tile": 17}),
    )
    assert rows[2].to_dict() == {"first": 10, "last": 15, "kernel": "large", "settings": {"tile": 17}}


def test_the_defaults_of_the_protocol_are_nothing() -> None:
    loaded = registry.installed()["reference"].load()
    assert not isinstance(loaded, No)
    assert Backend.kernels(loaded) is None and kernels_of(loaded) is None
