"""The pytest plug-in: which backend to test, and proof that it was tested.

``--mxfp4-backend NAME`` names the backend for conformance classes that do not name one themselves.
``--require-backend NAME`` is for machines that must have the device: there a skip in the suite of that backend is a
failure, and so is a run in which none of its tests passed, or in which the whole suite passed and never computed with a
feature that the backend lists. Without it, "no such device here" and "the device is no longer recognised" look the
same.

At the end stands, for each backend, which of its features no test exercised: a feature counts if a test that passed
computed with it, and a problem that ``supports`` refuses is not computed.

This module is imported at every start of pytest, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import pytest

from mxfp4_core.testing import exercised

_SUITES = (
    "conformance",
    "crafted",
    "fixtures",
    "judge",
    "suite_activations",
    "suite_dialect",
    "suite_format",
    "suite_format_parts",
    "suite_gates",
    "suite_large",
    "suite_layout",
    "suite_linear",
    "suite_loader",
    "suite_moe",
    "suite_module",
    "suite_profile",
    "suite_quantize",
    "suite_refit",
    "suite_routes",
    "suite_state",
    "suite_training",
    "suite_verdict",
)
pytest.register_assert_rewrite(*(f"mxfp4_core.testing.{name}" for name in _SUITES))

_MARK = "mxfp4_suite"
_ERRORS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    group = parser.getgroup("mxfp4", "conformance of MXFP4 backends")
    group.addoption(
        "--mxfp4-backend",
        metavar="NAME",
        help="backend under test in conformance classes that name none (default: reference)",
    )
    group.addoption(
        "--require-backend",
        metavar="NAME",
        help="turn every skip in the conformance suite of this backend into a failure, and fail if none of it ran",
    )


def backend_of(item: pytest.Item) -> str | None:
    """Return the name of the backend that a conformance test is about, None for any other test."""
    cls = getattr(item, "cls", None)
    if not getattr(cls, "mxfp4_conformance", False):
        return None
    name = getattr(cls, "backend_name", None) or item.config.getoption("--mxfp4-backend")
    return str(name or "reference")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Mark reports of the suite with what they exercised, and turn skips of the required backend into failures."""
    used = exercised.taken() if call.when == "call" else frozenset()
    report = yield
    required, name = item.config.getoption("--require-backend"), backend_of(item)
    if name is None:
        return report
    if name == required and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: {reason}\n--require-backend {required} allows no skip"
    if call.when == "call":
        cls = getattr(item, "cls", None)
        features = getattr(getattr(item, "funcargs", {}).get("backend"), "features", ())
        passed = {
            "backend": name,
            "test": getattr(item, "originalname", item.name),
            "tests": sum(one.startswith("test_") for one in dir(cls)),
            "features": sorted(features),
            "exercised": sorted(used),
        }
        report.user_properties.append((_MARK, passed))
    return report


@dataclass
class _Suite:
    """What the passed tests of one backend's suite say together."""

    tests: set[str] = field(default_factory=set)
    size: int = 0
    features: set[str] = field(default_factory=set)
    exercised: set[str] = field(default_factory=set)

    @property
    def whole(self) -> bool:
        """Whether each test function of the suite passed at least once; a selection says nothing about features."""
        return len(self.tests) >= self.size

    @property
    def missing(self) -> list[str]:
        return exercised.missing(self.features, self.exercised)


def _suites(config: pytest.Config) -> dict[str, _Suite]:
    found: dict[str, _Suite] = {}
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    for report in terminal.stats.get("passed", []) if terminal else []:
        for key, said in report.user_properties:
            if key == _MARK:
                suite = found.setdefault(said["backend"], _Suite())
                suite.tests.add(said["test"])
                suite.size = max(suite.size, said["tests"])
                suite.features.update(said["features"])
                suite.exercised.update(said["exercised"])
    return found


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session that was to test a backend and did not. Workers of pytest-xdist leave it to the controller."""
    config = session.config
    required = config.getoption("--require-backend")
    if required is None or hasattr(config, "workerinput") or config.getoption("collectonly"):
        return
    suite, errors = _suites(config).get(required), []
    if suite is None:
        errors.append(f"--require-backend {required}: no test of its suite passed")
    elif suite.whole and suite.missing:
        errors.append(
            f"--require-backend {required}: it lists features that no test exercised: {', '.join(suite.missing)}"
        )
    if errors:
        config.stash[_ERRORS] = errors
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what each suite never exercised, and why a session failed whose tests did not."""
    for name, suite in sorted(_suites(terminalreporter.config).items()):
        if suite.whole or suite.exercised:
            never = ", ".join(suite.missing) or "none"
            part = "" if suite.whole else " (a part of the suite ran)"
            terminalreporter.write_line(f"mxfp4: features of {name} that no test exercised{part}: {never}")
    for line in terminalreporter.config.stash.get(_ERRORS, []):
        terminalreporter.write_line(f"ERROR: {line}", red=True)
