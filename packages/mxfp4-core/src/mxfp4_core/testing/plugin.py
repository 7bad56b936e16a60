"""The pytest plug-in: which backend to test, and proof that it was tested.

``--mxfp4-backend NAME`` names the backend for conformance classes that do not name one themselves.
``--require-backend NAME`` is for machines that must have the device: there a skip in the suite of that backend is a
failure, and so is a run in which none of its tests passed. Without it, "no such device here" and "the device is no
longer recognised" look the same.

This module is imported at every start of pytest, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

_SUITES = (
    "conformance",
    "crafted",
    "fixtures",
    "judge",
    "suite_activations",
    "suite_gates",
    "suite_large",
    "suite_layout",
    "suite_linear",
    "suite_loader",
    "suite_moe",
    "suite_module",
    "suite_quantize",
    "suite_routes",
    "suite_state",
    "suite_verdict",
)
pytest.register_assert_rewrite(*(f"mxfp4_core.testing.{name}" for name in _SUITES))

_PASSED = pytest.StashKey[int]()


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
    """Mark reports of the required backend, and turn their skips into failures."""
    report = yield
    required = item.config.getoption("--require-backend")
    if required is not None and backend_of(item) == required:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: {reason}\n--require-backend {required} allows no skip"
        report.user_properties.append(("mxfp4_required", required))
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session that was to test a backend and did not. Workers of pytest-xdist leave it to the controller."""
    config = session.config
    required = config.getoption("--require-backend")
    if required is None or hasattr(config, "workerinput") or config.getoption("collectonly"):
        return
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    passed = terminal.stats.get("passed", []) if terminal else []
    ran = [report for report in passed if ("mxfp4_required", required) in report.user_properties]
    if not ran:
        config.stash[_PASSED] = 0
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a session failed whose tests did not."""
    if terminalreporter.config.stash.get(_PASSED, None) == 0:
        required = terminalreporter.config.getoption("--require-backend")
        terminalreporter.write_line(
            f"ERROR: --require-backend {required}: no test of its suite passed", red=True
        )
