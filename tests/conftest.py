"""Fixtures: one stand-in for Ollama and one gate for all tests that leave them as they were."""

import warnings
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.support import Gate, Upstream

with warnings.catch_warnings():
    # mitmproxy and ldap3 call their libraries by old names, which only tests in this process would hear of.
    warnings.simplefilter("ignore", DeprecationWarning)
    import mitmproxy.addons  # noqa: F401

# The same examples every time, and none fails for being slow on a busy machine.
settings.register_profile("gate", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gate")


@pytest.fixture(scope="session")
def shared_upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.stop()


@pytest.fixture
def upstream(shared_upstream: Upstream) -> Upstream:
    shared_upstream.reset()
    return shared_upstream


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
