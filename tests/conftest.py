"""Fixtures: one demo upstream and one gate for all tests that leave them as they were."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.base import wait_until
from tests.harness.certificates import certificate
from tests.harness.gate import WAY, Gate
from tests.harness.upstream import Scripted, Upstream

with warnings.catch_warnings():
    # mitmproxy and ldap3 call their libraries by old names, which only tests in this process would hear of.
    warnings.simplefilter("ignore", DeprecationWarning)
    import mitmproxy.addons  # noqa: F401

FAILURES = os.environ.get("TEST_FAILURES")
"""Where scripts/test wants the names of the tests that failed."""

# The same examples every time, and none fails for being slow on a busy machine.
settings.register_profile("gate", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gate")


def pytest_report_header() -> str:
    return f"gates run in this way: {WAY or 'plain'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FAILURES:
        reports = [one for kind in ("failed", "error") for one in terminalreporter.stats.get(kind, [])]
        Path(FAILURES).write_text("".join(f"{one.nodeid}\n" for one in dict.fromkeys(reports)))


@pytest.fixture(scope="session")
def shared_upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.stop()


@pytest.fixture
def upstream(shared_upstream: Upstream) -> Iterator[Upstream]:
    """The demo upstream, of which no connection is left once the test is over."""
    shared_upstream.reset()
    yield shared_upstream
    shared_upstream.go_on()
    wait_until(lambda: not shared_upstream.open_connections, "the connections upstream to end")


@pytest.fixture(scope="module")
def script() -> Iterator[Scripted]:
    """An upstream that does what a test says."""
    script = Scripted()
    yield script
    script.stop()


@pytest.fixture(scope="session")
def cert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, with its key."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def shared_gate(shared_upstream: Upstream) -> Iterator[Gate]:
    gate = Gate(shared_upstream.url)
    yield gate
    gate.stop()


@pytest.fixture
def gate(shared_gate: Gate, upstream: Upstream) -> Gate:
    """A gate in front of `upstream` with the key KEY."""
    assert shared_gate.process.poll() is None, shared_gate.output
    return shared_gate
