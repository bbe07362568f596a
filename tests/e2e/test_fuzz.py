"""The fuzzers, for a few seconds. For hours: PYTHONPATH=addons:. python -m tests.tools.fuzz, or fuzz_responses"""

from pathlib import Path

import pytest

from tests.harness.base import BEARER
from tests.harness.certificates import certificate
from tests.harness.gate import Gate
from tests.harness.upstream import Upstream
from tests.harness.wire import ask
from tests.tools import fuzz_responses
from tests.tools.fuzz import run, run_http2
from tests.tools.soak import soak

pytestmark = pytest.mark.slow


def test_http1(upstream: Upstream) -> None:
    with Gate(upstream.url) as gate:
        run(gate, upstream, 400, start=20261123)
        assert ask(gate.port, "GET", "/api/version", BEARER).status == 200


def test_http2(upstream: Upstream, tmp_path: Path) -> None:
    with Gate(upstream.url, "--certs", str(certificate(tmp_path))) as gate:
        run_http2(gate, upstream, 60, start=20261123)


@pytest.mark.parametrize("way", ["fast path", "no fast path", "http2", "tls upstream"])
def test_answers(way: str, cert: Path) -> None:
    used = cert if way == "http2" else None
    upstream_cert = cert if way == "tls upstream" else None
    started = fuzz_responses.fuzzed_gate(fast_path=way != "no fast path", cert=used, upstream_cert=upstream_cert)
    with started as (gate, ollama):
        fuzz_responses.run(gate, ollama, 80, start=20261126, cert=used)


def test_the_sums_after_a_mixed_load() -> None:
    assert soak(3, clients=3, tls=True, steady=True)
