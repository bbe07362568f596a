"""An allowed CORS preflight keeps its connection open, and is harmless whatever stands before, in or after it."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import h2.events
import pytest

from tests.harness.base import BEARER, PATIENCE, SECONDS
from tests.harness.gate import Controlled, Gate, assert_sound, logged
from tests.harness.http2 import H2
from tests.harness.mitmweb import Mitmweb
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, chat, head, parse

ORIGIN = "https://chat.example"
CORS = ("--set", f"ollama_cors_origins={ORIGIN}", "--set", "ollama_access_log=-")
FIELDS = (f"Origin: {ORIGIN}", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization")
PREFLIGHT = head("OPTIONS", "/api/chat", *FIELDS)
BODY = chat()
CHAT = head("POST", "/api/chat", BEARER, f"Origin: {ORIGIN}", f"Content-Length: {len(BODY)}") + BODY
H2_FIELDS = tuple((name.lower(), value) for name, _, value in (field.partition(": ") for field in FIELDS))


@pytest.fixture(scope="module", params=["mitmdump", "mitmweb"])
def page_gate(request: pytest.FixtureRequest, shared_upstream: Upstream) -> Iterator[Gate]:
    """A gate for pages; in mitmweb a refused request becomes a flow and takes another way through the layers."""
    kind = Mitmweb if request.param == "mitmweb" else Controlled
    with kind(shared_upstream.url, *CORS) as gate:
        yield gate
        assert_sound(gate, shared_upstream)


def test_it_keeps_the_connection_open(page_gate: Gate, upstream: Upstream) -> None:
    ids: list[str] = []
    with logged(page_gate, 4) as lines, Wire(page_gate.port) as wire:
        for _ in range(2):
            preflight = wire.send(PREFLIGHT).read_response()
            assert preflight.status == 204
            assert not {"connection", "content-length", "transfer-encoding"} & preflight.headers.keys()
            ids.append(preflight.headers["x-request-id"])
            assert wire.send(CHAT).read_response().status == 200
    assert [line["status"] for line in lines] == [204, 200, 204, 200]
    assert [line["id"] for line in lines if line["status"] == 204] == ids
    assert [line.get("reason") for line in lines] == ["preflight", None, "preflight", None]


def test_pipelined(page_gate: Gate, upstream: Upstream) -> None:
    """Before and after others, and at any split."""
    raw = PREFLIGHT + CHAT + PREFLIGHT * 3 + CHAT
    for size in (len(raw), 1000, 50):
        with logged(page_gate, 6), Wire(page_gate.port) as wire:
            for at in range(0, len(raw), size):
                wire.send(raw[at : at + size])
                time.sleep(0.002 if size < len(raw) else 0)
            assert [wire.read_response().status for _ in range(6)] == [204, 200, 204, 204, 204, 200]


@pytest.mark.slow
def test_many_pipelined(page_gate: Gate, upstream: Upstream) -> None:
    """More than is kept of a client that has to wait."""
    count = 1000
    with upstream.untouched(), logged(page_gate, count), Wire(page_gate.port, timeout=60) as wire:
        wire.send(PREFLIGHT * count)
        for _ in range(count):
            assert wire.read_response().status == 204


def test_a_large_body_behind_it(page_gate: Gate, upstream: Upstream) -> None:
    body = chat(pad="x" * 3_000_000)
    request = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body
    with logged(page_gate, 3) as lines, Wire(page_gate.port) as wire:
        wire.send(PREFLIGHT * 2 + request)
        assert [wire.read_response().status for _ in range(3)] == [204, 204, 200]
    assert lines[2]["bytes_in"] == len(body)


CLOSING = {
    "with a body": head("OPTIONS", "/api/chat", *FIELDS, "Content-Length: 5") + b"GET /",
    "with a body that does not come": head("OPTIONS", "/api/chat", *FIELDS, "Content-Length: 5"),
    "with a chunked body": head("OPTIONS", "/api/chat", *FIELDS, "Transfer-Encoding: chunked") + b"5\r\nGET /\r\n",
    "with an expectation": head("OPTIONS", "/api/chat", *FIELDS, "Content-Length: 5", "Expect: 100-continue"),
    "that is to be the last": head("OPTIONS", "/api/chat", *FIELDS, "Connection: close"),
    "in HTTP/1.0": PREFLIGHT.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "in HTTP/1.0, kept alive": head("OPTIONS", "/", *FIELDS, "Connection: keep-alive").replace(b"/1.1\r", b"/1.0\r"),
}


@pytest.mark.parametrize("kind", CLOSING)
def test_it_closes_the_connection(page_gate: Gate, upstream: Upstream, kind: str) -> None:
    """What follows it is not read as a request."""
    with upstream.untouched(), logged(page_gate), Wire(page_gate.port, CLOSING[kind] + CHAT) as wire:
        answer = parse(wire.read_all())
    assert (answer.status, answer.headers["connection"], answer.body) == (204, "close", b"")


def test_a_stranger_is_refused_behind_it(page_gate: Gate, upstream: Upstream) -> None:
    with upstream.untouched(), logged(page_gate, 2), Wire(page_gate.port, PREFLIGHT) as wire:
        assert wire.read_response().status == 204
        wire.send(head("POST", "/api/chat", "Content-Length: 1000000"))
        assert parse(wire.read_all()).status == 401


def test_an_unlisted_origin_closes_the_connection(page_gate: Gate, upstream: Upstream) -> None:
    with upstream.untouched(), Wire(page_gate.port, PREFLIGHT.replace(b"chat.example", b"evil.example")) as wire:
        assert parse(wire.read_all()).status == 401


@pytest.fixture(scope="module")
def brief(shared_upstream: Upstream) -> Iterator[Gate]:
    limits = ("ollama_head_timeout=1", "ollama_idle_timeout=60", "ollama_max_connections=5")
    sets = [word for limit in limits for word in ("--set", limit)]
    with Gate(shared_upstream.url, *CORS, *sets) as gate:
        yield gate
        assert_sound(gate, shared_upstream)


def test_a_stranger_may_not_idle_behind_it(brief: Gate, upstream: Upstream) -> None:
    """No longer than before a first request; who had a key has the idle timeout."""
    begun = time.monotonic()
    with Wire(brief.port, PREFLIGHT) as stranger, Wire(brief.port, CHAT) as friend:
        assert stranger.read_response().status == 204
        assert friend.read_response().status == 200
        assert friend.send(PREFLIGHT).read_response().status == 204
        assert stranger.read_all() == b""
        assert time.monotonic() - begun < 1 + SECONDS
        assert friend.send(CHAT).read_response().status == 200


def test_a_slow_head_behind_it(brief: Gate, upstream: Upstream) -> None:
    with upstream.untouched(), Wire(brief.port, PREFLIGHT + b"GET / HT") as wire:
        assert wire.read_response().status == 204
        assert parse(wire.read_all()).status == 408


def test_it_makes_room_for_others(brief: Gate, upstream: Upstream) -> None:
    """A stranger who keeps connections open by preflights gets out of the way of others."""
    wires = [Wire(brief.port, PREFLIGHT) for _ in range(5)]
    assert [wire.read_response().status for wire in wires] == [204] * 5
    with Wire(brief.port, CHAT) as wire:
        assert wire.read_response().status == 200
    for wire in wires:
        wire.close()


@pytest.mark.slow
def test_a_flood_of_them(brief: Gate, upstream: Upstream) -> None:
    """From a client that does not read: memory stays flat, and others are served."""
    before = brief.rss
    with upstream.untouched(), Wire(brief.port, PREFLIGHT, timeout=1) as flood, suppress(OSError):
        for _ in range(100):
            flood.send(PREFLIGHT * 500)
    with Wire(brief.port, CHAT) as wire:
        assert wire.read_response().status == 200
    assert brief.rss - before < 20 << 20


@pytest.mark.slow
def test_http2(shared_upstream: Upstream, upstream: Upstream, cert: Path) -> None:
    """The connection stays open there, too; one that came with a body is stopped as any refusal is."""
    with Gate(shared_upstream.url, *CORS, "--certs", str(cert)) as gate:
        for key in (False, True):
            with logged(gate, 3 + key), H2(gate.port, cert) as client:
                if key:
                    assert client.headers(client.request("GET", "/api/tags"))[":status"] == "200"
                for _ in range(2):
                    stream = client.request("OPTIONS", "/api/chat", *H2_FIELDS, key=False)
                    assert client.headers(stream)[":status"] == "204"
                assert client.headers(client.request("POST", "/api/chat", body=BODY))[":status"] == "200"
                assert not client.has(h2.events.ConnectionTerminated)
        with upstream.untouched(), logged(gate), H2(gate.port, cert) as client:
            stream = client.request("OPTIONS", "/api/chat", *H2_FIELDS, body=None, key=False)
            assert client.headers(stream)[":status"] == "204"
            client.until_closed()
        assert_sound(gate, upstream)


def test_http2_idle(shared_upstream: Upstream, upstream: Upstream, cert: Path) -> None:
    """A stranger may not idle behind it for longer than before a first request."""
    sets = ("--set", "ollama_head_timeout=1", "--set", "ollama_idle_timeout=60", "--certs", str(cert))
    with Gate(shared_upstream.url, *CORS, *sets) as gate:
        begun = time.monotonic()
        with H2(gate.port, cert) as client:
            assert client.headers(client.request("OPTIONS", "/", *H2_FIELDS, key=False))[":status"] == "204"
            client.until_closed()
        assert time.monotonic() - begun < PATIENCE
