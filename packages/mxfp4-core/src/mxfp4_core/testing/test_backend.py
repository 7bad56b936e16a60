"""The suite without a file of your own: ``pytest --pyargs mxfp4_core.testing.test_backend --mxfp4-backend NAME``."""

from __future__ import annotations

from mxfp4_core.testing.conformance import BackendConformance


class TestBackend(BackendConformance):
    """The backend that ``--mxfp4-backend`` names; the reference backend if none is named."""
