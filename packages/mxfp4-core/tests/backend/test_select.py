from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from backend_toys import CPU, H200, MI355, Toy, line, linear

from mxfp4_core.backend import select
from mxfp4_core.backend.answers import No, Numerics, Rank, Verdict, Yes
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.options import check_choice, check_keys
from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.select import explain, select_backend
from mxfp4_core.errors import BackendError, ConfigError

Install = Callable[..., None]


def test_reference_is_automatic_on_the_cpu_only() -> None:
    assert select_backend(linear(CPU)).backend.name == "reference"
    with pytest.raises(BackendError, match="install mxfp4-cuda-marlin, which is not on PyPI yet"):
        select_backend(linear(H200))
    chosen = select_backend(linear(H200), backend="reference")
    assert chosen.backend.name == "reference" and not chosen.fallback


def test_no_problem_means_this_machine() -> None:
    assert select_backend(backend="reference").problem.device == Device.current()


def test_native_comes_before_emulated_and_then_the_rank_decides(install: Install) -> None:
    install(
        aa=Toy("aa", emulated=True, answer=Yes(rank=1000)),
        cc=Toy("cc", answer=Yes(rank=Rank.PORTABLE)),
        bb=Toy("bb"),
        dd=Toy("dd", answer=Yes(rank=Rank.NATIVE + 1)),
        no=Toy("no", answer=No("too small", "grow")),
    )
    selection = select_backend(linear())
    assert selection.backend.name == "dd"
    assert selection.reason == "before bb, cc, aa"
    assert line(selection, "bb").rank == Rank.NATIVE and line(selection, "no").rank == 0
    assert line(selection, "no").reason == "too small" and line(selection, "no").fix == "grow"


def test_equal_ranks_are_an_error_that_asks_to_name_one(install: Install) -> None:
    install(bb=Toy("bb"), aa=Toy("aa"), zz=Toy("zz", emulated=True))
    with pytest.raises(BackendError) as caught:
        select_backend(linear(), fallback="zz")
    assert "'aa' and 'bb' accept and have the same rank 300" in caught.value.seen
    assert caught.value.fix == "name one: backend='aa' or backend='bb'"
    assert select_backend(linear(), backend="bb").backend.name == "bb"


def test_an_answer_holds_for_the_problem(install: Install) -> None:
    numerics = Numerics(activation="fp8", hidden="input")
    answer = Yes("k7", 5, numerics, provider="triton", layout="wide")
    install(aa=Toy("aa", answer=answer))
    selection = select_backend(replace(linear(), activation="auto"))
    chosen = line(selection, "aa")
    assert (chosen.provider, chosen.layout, selection.temporary_bytes) == ("triton", "wide", 5)
    assert selection.numerics == numerics
    data = json.loads(json.dumps(selection.to_dict()))
    assert data["trace"][0]["numerics"]["activation"] == "fp8"
    broken = line(explain(linear()), "aa")
    assert broken.status == "broken" and "activation 'fp8' in its answer to" in broken.reason


def test_an_answer_may_say_whether_it_is_chosen_unnamed(install: Install) -> None:
    install(aa=Toy("aa", on="npu", answer=Yes(automatic=True)), bb=Toy("bb", answer=Yes(automatic=False)))
    selection = select_backend(linear(H200))
    assert selection.backend.name == "aa" and line(selection, "aa").automatic
    assert line(selection, "bb").reason == "only when named"
    assert select_backend(linear(H200), backend="bb").backend.name == "bb"


def test_auto_is_no_activation_unless_the_backend_says_so(install: Install) -> None:
    install(aa=Toy("aa"))
    found = select_backend(replace(linear(), activation="auto")).numerics
    assert found is not None and found.activation == "none"


class Optional(Toy):
    """Has one option."""

    features = Toy.features | {"moe:bias"}

    def check_options(self, options: Mapping[str, object]) -> None:
        check_keys(self.name, options, ("provider",))
        check_choice(self.name, options, "provider", ("triton", "hand"))

    def supports(self, problem: Problem) -> Verdict:
        return Yes(provider=str(problem.options.get("provider", "hand")), rank=500)


def test_options_reach_their_backend_only(install: Install) -> None:
    install(aa=Optional("aa"), bb=Toy("bb"))
    plain = select_backend(linear())
    assert line(plain, "aa").provider == "hand"
    chosen = select_backend(linear(), backend_options={"aa": {"provider": "triton"}})
    assert line(chosen, "aa").provider == "triton"
    assert chosen.problem.options == {"provider": "triton"}
    other = select_backend(linear(), backend="bb", backend_options={"aa": {"provider": "hand"}, "bb": {}})
    assert other.backend.name == "bb" and not other.problem.options


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"aa": {"provder": "triton"}}, "did you mean 'provider'?"),
        ({"aa": {"provider": "triton3"}}, "did you mean 'triton'?"),
        ({"aa": {"provider": {}}}, "write 'provider' in this way, or drop it"),
        ({"bb": {"provider": "triton"}}, "drop 'provider'"),
        ({"cc": {}}, "drop them, or name backend='cc'"),
    ],
    ids=str,
)
def test_options_that_nobody_takes_are_errors(
    install: Install, options: dict[str, dict[str, object]], fix: str
) -> None:
    install(aa=Optional("aa"), bb=Toy("bb"), cc=Toy("cc"))
    with pytest.raises(ConfigError) as caught:
        select_backend(linear(), backend_options=options)
    assert caught.value.fix == fix


def test_options_of_a_stranger_are_an_error(install: Install) -> None:
    install(aa=Optional("aa"))
    with pytest.raises(BackendError, match="did you mean 'rocm'"):
        select_backend(linear(), backend_options={"rocn": {}})


def test_options_wait_for_a_backend_that_refused_before_its_fallback(install: Install) -> None:
    install(aa=Optional("aa", on="npu"), zz=Toy("zz", answer=No("no", "none")))
    options = {"zz": {}}
    assert select_backend(linear(), backend="zz", fallback="aa", backend_options=options).fallback


def test_a_feature_may_be_for_one_op(install: Install) -> None:
    backend = Optional("aa")
    install(aa=backend)
    biased = replace(linear(), bias=True)
    assert line(explain(biased), "aa").reason == "does not offer bias"
    backend.features = backend.features | {"linear:bias"}
    assert line(explain(biased), "aa").status == "accepted"


def test_the_order_of_installation_does_not_matter(install: Install) -> None:
    install(bb=Toy("bb", answer=Yes(rank=Rank.PORTABLE)))
    install(aa=Toy("aa"))
    assert select_backend(linear()).backend.name == "aa"


def test_a_named_backend_runs_anywhere_it_accepts(install: Install) -> None:
    install(aa=Toy("aa"), zz=Toy("zz", on="npu"))
    assert select_backend(linear(), backend="zz").reason == "named by the caller"


def test_a_named_backend_that_refuses_is_an_error_with_its_fix(install: Install) -> None:
    install(aa=Toy("aa"), zz=Toy("zz", answer=No("k = 64, needs 256", "use --tp 1")))
    with pytest.raises(BackendError) as caught:
        select_backend(linear(), backend="zz")
    assert caught.value.fix == "use --tp 1" and "k = 64, needs 256" in caught.value.seen


def test_unknown_words_are_refused_before_the_backend_is_asked(install: Install) -> None:
    install(aa=Toy("aa"))
    refused = line(explain(replace(linear(), requires=frozenset({"dual-level"}))), "aa")
    assert refused.status == "rejected" and "dual-level" in refused.reason


def test_unknown_names_get_a_near_miss() -> None:
    for name, fallback in (("refrence", None), (None, "refrence")):
        with pytest.raises(BackendError) as caught:
            select_backend(linear(CPU), backend=name, fallback=fallback)
        assert caught.value.fix == "did you mean 'reference'?"


@pytest.mark.parametrize(
    ("device", "names"),
    [
        (CPU, []),
        (H200, ["cuda-marlin"]),
        (Device("cuda", "sm_86"), []),
        (Device("cuda", "unknown"), ["cuda-marlin"]),
        (MI355, ["rocm"]),
        (Device("hip", "gfx942"), ["petit"]),
        (Device("npu", "Ascend950"), ["npu"]),
    ],
    ids=str,
)
def test_known_backends_that_could_help_are_named(device: Device, names: list[str]) -> None:
    absent = [one for one in explain(linear(device)).trace if one.status == "not installed"]
    assert [one.name for one in absent] == names
    assert all(one.fix.startswith("install mxfp4-") for one in absent)


def test_of_known_backends_those_that_take_the_format_are_named() -> None:
    absent = {
        device: [
            one
            for one in explain(replace(linear(device), format="mxfp8")).trace
            if one.status == "not installed"
        ]
        for device in (H200, MI355, Device("npu", "Ascend950"))
    }
    assert [[one.name for one in lines] for lines in absent.values()] == [["petit"], ["petit"], []]
    assert absent[H200][0].reason == "takes mxfp8 on cuda and hip"


def test_an_installed_known_backend_is_not_called_missing(install: Install) -> None:
    install(rocm=Toy("rocm", on="hip"))
    assert [one.status for one in explain(linear(MI355)).trace] == ["accepted"]


def test_naming_a_known_backend_gives_its_pip_line() -> None:
    with pytest.raises(BackendError) as caught:
        select_backend(linear(CPU), backend="rocm")
    assert caught.value.fix == "install mxfp4-rocm, which is not on PyPI yet: see docs/backends.md"


def test_fallback_is_used_only_when_it_is_named_and_says_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "free_bytes", lambda device: 8 << 30)
    selection = select_backend(linear(H200), fallback="reference")
    assert selection.fallback and selection.backend.name == "reference"
    assert selection.temporary_bytes == 4 * 64 * 64
    assert "temporary memory in each call, 8.0 GiB is free" in selection.reason
    named = select_backend(linear(H200), backend="cuda-marlin", fallback="reference")
    assert named.fallback and "'cuda-marlin' was named and is not installed" in named.reason


def test_fallback_is_not_used_where_another_accepts(install: Install) -> None:
    install(aa=Toy("aa"), zz=Toy("zz", emulated=True))
    selection = select_backend(linear(), fallback="zz")
    assert selection.backend.name == "aa" and not selection.fallback


def test_a_fallback_that_does_not_fit_is_refused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(zz=Toy("zz", on="npu", answer=Yes(temporary_bytes=2 << 30)))
    monkeypatch.setattr(select, "free_bytes", lambda device: 1 << 30)
    with pytest.raises(BackendError, match=r"2\.0 GiB .* 1\.0 GiB is free: it does not fit"):
        select_backend(linear(), fallback="zz")
    monkeypatch.setattr(select, "free_bytes", lambda device: None)
    assert select_backend(linear(), fallback="zz").fallback


def test_a_fallback_that_refuses_is_an_error(install: Install) -> None:
    install(zz=Toy("zz", on="npu", answer=No("too old", "update")))
    with pytest.raises(BackendError, match="the fallback 'zz' does not accept either"):
        select_backend(linear(), fallback="zz")


def test_no_backend_at_all(install: Install) -> None:
    with pytest.raises(BackendError, match="install a backend"):
        select_backend(linear(CPU))


def test_asking_needs_no_torch() -> None:
    rooms = {"backend": "select registry protocol problem device", "testing": "plugin cases"}
    modules = ", ".join(
        f"mxfp4_core.{room}.{name}" for room, names in rooms.items() for name in names.split()
    )
    code = f"import sys; sys.modules['torch'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_selection_is_data_and_text(install: Install) -> None:
    install(aa=Toy("aa", answer=Yes("kernel 7")), bb=Toy("bb", on="npu"))
    selection = select_backend(linear())
    data = selection.to_dict()
    assert data["choice"] == "aa" and data["trace"][0]["reason"] == "kernel 7"  # type: ignore[index]
    assert "bb           accepted      only when named" in str(selection)
    with pytest.raises(BackendError):
        _ = explain(linear(), backend="rocm").backend
