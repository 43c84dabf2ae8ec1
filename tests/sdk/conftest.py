"""The SDK reporting to a recording server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentsched.sdk.reporting import Reporter, use_reporter
from tests.sdk.recording import Recording


@pytest.fixture
def daemon() -> Iterator[Recording]:
    """A server that records events; the SDK reports to it."""
    with Recording() as recording:
        reporter = Reporter(recording.url)
        use_reporter(reporter)
        recording.flush = reporter.flush
        try:
            yield recording
        finally:
            reporter.flush()
            use_reporter(None)
