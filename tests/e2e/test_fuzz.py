"""The fuzzer, for a few seconds. For hours: python tests/tools/fuzz.py"""

from pathlib import Path

from tests.harness.certificates import make_certificate
from tests.harness.support import BEARER, Gate, Upstream, ask
from tests.tools.fuzz import run, run_http2


def test_http1(upstream: Upstream) -> None:
    with Gate(upstream.url) as gate:
        run(gate, upstream, 400, start=20261123)
        assert ask(gate.port, "GET", "/api/version", BEARER).status == 200


def test_http2(upstream: Upstream, tmp_path: Path) -> None:
    with Gate(upstream.url, "--certs", str(make_certificate(tmp_path))) as gate:
        run_http2(gate, upstream, 60, start=20261123)
