"""Silence is no error once a request is admitted; before that, and between two requests, it ends the connection."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.base import BEARER, SECONDS, wait_until
from tests.harness.gate import Gate, assert_sound, logged
from tests.harness.http2 import H2
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, chat, head

BRIEF = (
    *("--set", "ollama_access_log=-", "--set", "ollama_head_timeout=1", "--set", "ollama_idle_timeout=1"),
    *("--set", "ollama_handshake_timeout=1", "--set", "ollama_connect_timeout=1"),
)
LONG = 2.5
"""Seconds of silence: each of the time limits above, more than twice."""


@pytest.fixture(scope="module")
def gate(shared_upstream: Upstream) -> Iterator[Gate]:
    with Gate(shared_upstream.url, *BRIEF) as gate:
        yield gate
        assert_sound(gate)


@pytest.fixture(scope="module")
def encrypted(shared_upstream: Upstream, cert: Path) -> Iterator[Gate]:
    with Gate(shared_upstream.url, *BRIEF, "--certs", str(cert)) as gate:
        yield gate
        assert_sound(gate)


@pytest.mark.slow
def test_a_silent_answer_arrives(gate: Gate, encrypted: Gate, upstream: Upstream, cert: Path) -> None:
    """Before its head, in the middle of it, while the client sends its body, in HTTP/2: all in one go."""
    upstream.hold()
    body = chat()
    post = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}")
    with (
        logged(gate, 3),
        logged(encrypted, 2),
        Wire(gate.port, head("GET", f"/demo/silent/{LONG}", BEARER)) as before,
        Wire(gate.port, post + body) as middle,
        Wire(gate.port, post + body[:-1]) as sending,
        H2(encrypted.port, cert) as two,
    ):
        silent = two.request("GET", f"/demo/silent/{LONG}")
        streaming = two.request("POST", "/api/chat", body=body)
        middle.read_until(b'"done":false}')
        assert before.read_response().json == {}
        sending.send(body[-1:])
        sending.read_until(b'"done":false}')
        upstream.go_on()
        for wire in (middle, sending):
            assert b'"done":true' in wire.read_until(b"0\r\n\r\n")
        assert two.body(silent) == b"{}"
        assert b'"done":true' in two.body(streaming)
        for wire in (before, middle, sending):
            assert wire.read_all() == b"", "the silence after an answer is not endless"
        two.until_closed()


def test_strangers_are_cut_early(gate: Gate, encrypted: Gate, upstream: Upstream, cert: Path) -> None:
    """In the middle of a handshake, and before a request."""
    with (
        upstream.untouched(),
        Wire(encrypted.port) as nothing,
        Wire(encrypted.port, b"\x16\x03\x01\x02\x00\x01") as hello,
        Wire(gate.port) as silent,
        H2(encrypted.port, cert) as two,
    ):
        for wire in (nothing, hello, silent):
            assert wire.read_all() == b""
        two.until_closed()


def test_a_request_that_never_ends_is_cut_when_its_client_leaves(gate: Gate, upstream: Upstream) -> None:
    with logged(gate) as lines, Wire(gate.port, head("GET", "/demo/silent/3600", BEARER)):
        wait_until(lambda: upstream.open_connections == 1, "the request upstream")
    wait_until(lambda: not upstream.open_connections, "the connection upstream to end", SECONDS)
    assert lines[0]["reason"] == "client left"
