"""The conformance suite: subclass it, name the backend, and run pytest.

    class TestMine(BackendConformance):
        backend_name = "mine"

Where the device is missing, what needs it is skipped, and verdicts and layouts are still tested if ``target`` names a
device. On a machine that must have it, run with ``--require-backend mine``. An op that the backend does not offer, and
a shape that it refuses with a reason and a fix, count as right answers, so there is no other skip.
"""

from __future__ import annotations

from mxfp4_core.testing.suite_activations import ActivationSuite
from mxfp4_core.testing.suite_formats import FormatSuite, TokensSuite
from mxfp4_core.testing.suite_gates import GateSuite
from mxfp4_core.testing.suite_large import LargeSuite
from mxfp4_core.testing.suite_layout import LayoutSuite
from mxfp4_core.testing.suite_linear import LinearSuite
from mxfp4_core.testing.suite_loader import LoaderSuite
from mxfp4_core.testing.suite_module import ModuleSuite
from mxfp4_core.testing.suite_moe import MoeSuite
from mxfp4_core.testing.suite_quantize import QuantizeSuite
from mxfp4_core.testing.suite_refit import RefitSuite
from mxfp4_core.testing.suite_routes import RoutesSuite
from mxfp4_core.testing.suite_state import StateSuite
from mxfp4_core.testing.suite_training import TrainingSuite
from mxfp4_core.testing.suite_verdict import VerdictSuite


class BackendConformance(
    VerdictSuite,
    LayoutSuite,
    QuantizeSuite,
    LinearSuite,
    ActivationSuite,
    MoeSuite,
    GateSuite,
    RoutesSuite,
    FormatSuite,
    TokensSuite,
    LargeSuite,
    StateSuite,
    ModuleSuite,
    TrainingSuite,
    RefitSuite,
    LoaderSuite,
):
    """Everything that a backend must be right about; see ``Fixtures`` for what can be overridden."""
