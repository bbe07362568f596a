"""The log tells how many bytes of body a client sent, also where the body was read before the decision."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.base import free_port
from tests.harness.certificates import certificate
from tests.harness.gate import Gate, assert_sound, logged
from tests.harness.http2 import H2
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, ask, chat, head

KEY = "sk-ollama-" + "a" * 32
BEARER = f"Authorization: Bearer {KEY}"
KEYS = f"""
[[keys]]
name = "alice"
sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"
models = ["demo"]
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(KEYS)
    file.chmod(0o600)
    sets = ("ollama_access_log=-", f"ollama_keys_file={file}", "ollama_max_body=infer=20k")
    return tuple(word for one in sets for word in ("--set", one))


@pytest.fixture(scope="module")
def gate(shared_upstream: Upstream, options: tuple[str, ...]) -> Iterator[Gate]:
    with Gate(shared_upstream.url, *options) as gate:
        yield gate
        assert_sound(gate, shared_upstream)


CASES = {
    "refused": ("/api/chat", chat("other", pad="x" * 5000), 403),
    "malformed": ("/api/chat", b"{" + b"x" * 5000, 400),
    "admitted": ("/api/chat", chat(pad="x" * 5000), 200),
}


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("kind", CASES)
def test_bytes_in(gate: Gate, upstream: Upstream, kind: str, framing: str) -> None:
    path, body, status = CASES[kind]
    sent = body if framing == "length" else b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    how = f"Content-Length: {len(body)}" if framing == "length" else "Transfer-Encoding: chunked"
    with logged(gate) as lines, Wire(gate.port, head("POST", path, BEARER, how) + sent) as wire:
        assert wire.read_response().status == status
    assert (lines[0]["status"], lines[0]["bytes_in"]) == (status, len(body))


def test_too_large(gate: Gate, upstream: Upstream) -> None:
    """What was read until it was too much."""
    data = head("POST", "/api/chat", BEARER, "Transfer-Encoding: chunked") + (b"1000\r\n%s\r\n" % bytes(4096)) * 6
    with upstream.untouched(), logged(gate) as lines, Wire(gate.port, data) as wire:
        assert wire.read_response().status == 413
    assert 20_000 < lines[0]["bytes_in"] <= 6 * 4096


def test_ollama_is_not_there(options: tuple[str, ...]) -> None:
    body = chat(pad="x" * 5000)
    with Gate(f"http://127.0.0.1:{free_port()}", *options) as gate, logged(gate) as lines:
        assert ask(gate.port, "POST", "/api/chat", BEARER, body=body).status == 503
    assert lines[0]["bytes_in"] == len(body)


def test_http2(shared_upstream: Upstream, options: tuple[str, ...], tmp_path: Path) -> None:
    cert = certificate(tmp_path)
    with Gate(shared_upstream.url, *options, "--certs", str(cert)) as gate:
        for path, body, status in CASES.values():
            with logged(gate) as lines, H2(gate.port, cert) as client:
                stream = client.request("POST", path, ("authorization", f"Bearer {KEY}"), body=body, key=False)
                assert client.status(stream) == status
                if status == 200:
                    client.body(stream)
            assert lines[0]["bytes_in"] == len(body)
        assert_sound(gate, shared_upstream)
