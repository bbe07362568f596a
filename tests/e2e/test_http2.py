"""TLS: HTTP/2 and HTTP/1.1 behind a certificate, with the promises that HTTP/1 has without one."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h2.errors
import h2.events
import httpx
import pytest
from packaging.version import Version

from tests.harness.base import BEARER, PATIENCE, SECONDS, wait_until
from tests.harness.certificates import trusting
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Controlled, Gate, assert_sound, log_lines, logged
from tests.harness.http2 import H2
from tests.harness.upstream import Scripted, Upstream, cut_off
from tests.harness.wire import Line, TlsWire, Wire, ask, assert_gone, chat, head, parse

pytestmark = pytest.mark.ways

JSON_LOG = ("--set", "ollama_access_log=-")
HELD = b'"done":false}'


@pytest.fixture(scope="module")
def tls(shared_upstream: Upstream, cert: Path) -> Iterator[Gate]:
    """A gate with a certificate."""
    with Gate(shared_upstream.url, *JSON_LOG, "--certs", str(cert), "--set", "ollama_max_body=infer=1k") as gate:
        yield gate
        assert_sound(gate, shared_upstream)


@pytest.fixture(scope="module")
def brief(shared_upstream: Upstream, cert: Path) -> Iterator[Gate]:
    """One that is impatient."""
    impatient = [f"ollama_{what}_timeout=1" for what in ("head", "idle", "handshake")]
    sets = [word for option in impatient for word in ("--set", option)]
    with Gate(shared_upstream.url, *JSON_LOG, "--certs", str(cert), *sets) as gate:
        yield gate
        assert_sound(gate, shared_upstream)


@pytest.fixture(scope="module")
def broken(script: Scripted, cert: Path) -> Iterator[Gate]:
    """One whose upstream does what the test says."""
    with Gate(script.url, *JSON_LOG, "--certs", str(cert)) as gate:
        yield gate
        assert_sound(gate)


# TLS.


def test_http_1_1(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """And the end of a connection is one that TLS vouches for."""
    with logged(tls, 3), TlsWire(tls.port, cert, head("GET", "/api/tags", BEARER)) as wire:
        assert wire.read_response().status == 200
        body = chat()
        wire.send(head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body)
        assert b'"done":true' in wire.read_response().body
        with upstream.untouched():
            wire.send(head("GET", "/api/tags"))
            assert parse(wire.read_all()).status == 401


def test_a_tls_client_at_a_plain_gate(gate: Gate, cert: Path) -> None:
    """A fatal alert, at once."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", gate.port), PATIENCE) as plain, pytest.raises(ssl.SSLError) as caught:
        trusting(cert).wrap_socket(plain, server_hostname="localhost")
    assert time.monotonic() - begun < SECONDS
    assert "alert handshake failure" in str(caught.value)


def test_a_plain_client_at_a_tls_gate(tls: Gate, upstream: Upstream) -> None:
    with upstream.untouched():
        answer = ask(tls.port, "GET", "/api/tags", BEARER)
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert "HTTPS" in answer.json["error"]
    assert answer.headers["x-request-id"]


HELLO = b"\x16\x03\x01\x40\x00"
NO_HELLO: dict[str, bytes] = {
    "a word": b"\x16\x03\x01\x00\x05hello",
    "zeros": b"\x16" + bytes(500),
    "many zeros": b"\x16\x03\x03\xff\xff" + bytes(70_000),
    "one of 16 MB": HELLO + b"\x01\xff\xff\xff" + bytes(0x4000 - 4) + (HELLO + bytes(0x4000)) * 1000,
}


@pytest.mark.parametrize("what", NO_HELLO)
def test_a_handshake_that_is_none(tls: Gate, upstream: Upstream, what: str) -> None:
    """The connection ends at once, and the log holds none of what was sent."""
    before = tls.rss, len(tls.output)
    with upstream.untouched(), Wire(tls.port) as wire, suppress(ConnectionError):
        wire.send(NO_HELLO[what])
        wire.socket.shutdown(socket.SHUT_WR)
        wire.read_all()
    assert tls.rss - before[0] < 5 << 20
    assert len(tls.output) - before[1] < 1000


@pytest.mark.parametrize("key", [True, False])
def test_garbage_after_the_handshake(tls: Gate, upstream: Upstream, cert: Path, key: bool) -> None:
    """While a stream runs, and while what was refused lingers: the connection ends, and so does its stream."""
    upstream.hold()
    with logged(tls), H2(tls.port, cert) as client:
        stream = client.request("POST", "/api/generate", body=chat(prompt="x") if key else None, key=key)
        client.until(h2.events.DataReceived, stream)
        with client.wire.unwrapped() as below:
            below.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            with suppress(ConnectionResetError):
                while below.recv(65536):
                    pass
    wait_until(lambda: not upstream.open_connections, "the connection upstream to end")


# HTTP/2: refusals.


def test_refused(tls: Gate, upstream: Upstream, cert: Path) -> None:
    with upstream.untouched(), logged(tls) as lines, H2(tls.port, cert) as client:
        stream = client.request("GET", "/api/tags", key=False)
        headers = client.headers(stream)
        assert headers[":status"] == "401"
        assert headers["www-authenticate"].startswith("Bearer")
        assert headers["x-should-retry"] == "false"
        assert headers["content-type"] == "application/json"
        assert int(headers["content-length"]) == len(client.body(stream))
        assert not {"connection", "server", "keep-alive"} & headers.keys()
        assert not client.has(h2.events.StreamReset), "there was nothing more to come"
        client.until_closed()
        goodbye = client.until(h2.events.ConnectionTerminated)
        assert (goodbye.error_code, goodbye.last_stream_id) == (h2.errors.ErrorCodes.NO_ERROR, stream)
    assert (lines[0]["status"], lines[0]["id"]) == (401, headers["x-request-id"])


LENIENT: dict[str, list[tuple[Any, Any]]] = {
    "crumbs of a cookie": [("cookie", f"c{number}=1") for number in range(120)],
    "an empty expectation": [("expect", "")],
    "an empty x-api-key": [("x-api-key", "")],
    "latin-1": [(b"x-user-name", b"Jos\xe9")],
}


@pytest.mark.parametrize("what", LENIENT)
def test_harmless(tls: Gate, upstream: Upstream, cert: Path, what: str) -> None:
    with logged(tls) as lines, H2(tls.port, cert) as client:
        headers = client.headers(client.request("GET", "/api/tags", *LENIENT[what]))
    assert headers[":status"] == "200"
    assert lines[0]["id"] == headers["x-request-id"]
    assert {name.lower() for name, _ in upstream.last.headers} == {"host"}


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (431, [("x", "y")] * 101),
        (417, [("expect", "200-ok")]),
        (400, [(b"accept", b"\xff")]),
    ],
)
def test_an_odd_head_has_its_id_too(
    tls: Gate, upstream: Upstream, cert: Path, status: int, fields: list[tuple[Any, Any]]
) -> None:
    with upstream.untouched(), logged(tls) as lines, H2(tls.port, cert, lax=True) as client:
        headers = client.headers(client.request("GET", "/api/tags", *fields))
    assert headers[":status"] == str(status)
    assert lines[0]["id"] == headers["x-request-id"]


@pytest.mark.slow
def test_refused_before_the_body(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Answered, reset without an error (RFC 9113 section 8.1), and gone; in HTTP/1.1 too."""
    data = head("POST", "/api/chat", "Content-Length: 2000000000")
    with (
        upstream.untouched(),
        logged(tls, 2),
        TlsWire(tls.port, cert, data, "http/1.1") as wire,
        H2(tls.port, cert) as client,
    ):
        wire.send(bytes(100_000))
        assert parse(wire.read_all()).status == 401
        stream = client.request("POST", "/api/chat", ("expect", "100-continue"), body=None, key=False)
        assert client.status(stream) == 401
        client.body(stream)
        assert client.until(h2.events.StreamReset, stream).error_code == h2.errors.ErrorCodes.NO_ERROR
        client.until_closed()
        assert not client.has(h2.events.InformationalResponseReceived)
        assert_gone(wire, client.wire)


def test_refused_while_the_body_is_sent(tls: Gate, upstream: Upstream, cert: Path) -> None:
    with upstream.untouched(), H2(tls.port, cert) as client:
        client.read()
        stream = client.request("POST", "/api/chat", body=None, key=False)
        for _ in range(6):
            client.data(stream, bytes(16_000))
        assert client.status(stream) == 401
        assert b"error" in client.body(stream)


def test_a_good_stream_beside_refused_ones(tls: Gate, upstream: Upstream, cert: Path) -> None:
    upstream.hold()
    with logged(tls, 22), H2(tls.port, cert) as client:
        good = client.request("POST", "/api/chat", body=chat())
        client.until(h2.events.DataReceived, good)
        for n in range(20):
            bad = client.request("POST", "/api/chat", body=None if n % 2 else b"x", key=False)
            assert client.status(bad) == 401
            client.body(bad)
        upstream.go_on()
        assert b'"done":true' in client.body(good)
        assert client.status(client.request("GET", "/api/tags")) == 200
        assert not client.has(h2.events.ConnectionTerminated)


REFUSED: dict[str, tuple[str, str, list[tuple[str, str]], int]] = {
    "too many fields": ("GET", "/", [(f"x-{n}", "1") for n in range(101)], 431),
    "a target that is too long": ("GET", "/" + "a" * 9000, [], 414),
    "a space in the path": ("GET", "/a b", [], 400),
    "a path that is not ascii": ("GET", "/\xe9", [], 400),
    "a fragment": ("GET", "/#a", [], 400),
    "an absolute path": ("GET", "http://example.com/", [], 421),
    "an asterisk": ("OPTIONS", "*", [], 421),
    "no slash": ("GET", "api/tags", [], 421),
    "trace": ("TRACE", "/", [], 405),
    "a method that nobody knows": ("BREW", "/", [], 405),
    "an expectation": ("GET", "/", [("expect", "200-ok")], 417),
    "two lengths": ("POST", "/demo/sink", [("content-length", "5"), ("content-length", "6")], 400),
    "two equal lengths": ("POST", "/demo/sink", [("content-length", "5"), ("content-length", "5")], 400),
    "a length and no body": ("POST", "/demo/sink", [("content-length", "5")], 400),
    "a length with an underscore": ("POST", "/demo/sink", [("content-length", "1_0")], 400),
    "a length of 19 digits": ("POST", "/demo/sink", [("content-length", "1000000000000000000")], 400),
    "two hosts": ("GET", "/", [("host", "localhost"), ("host", "localhost")], 400),
    "an escape": ("GET", "/", [("x", "\x1b[2J")], 400),
    "a body that is too large": ("POST", "/api/chat", [("content-length", "1025")], 413),
}


@pytest.mark.parametrize("what", REFUSED)
def test_strict(tls: Gate, upstream: Upstream, cert: Path, what: str) -> None:
    """With the key, and without."""
    method, path, fields, status = REFUSED[what]
    body = None if method == "POST" and what != "a length and no body" else b""
    expected = [status, 401 if status == 413 else status]
    with upstream.untouched(), logged(tls, 2) as lines:
        for key, wanted in zip((True, False), expected, strict=True):
            with H2(tls.port, cert, lax=True) as client:
                stream = client.request(method, path, *fields, key=key, body=body)
                assert client.status(stream) == wanted
                assert b"error" in client.body(stream)
    assert [line["status"] for line in lines] == expected


ENDED: dict[str, list[tuple[str, str]]] = {
    "a head that is too long": [("x", "y" * 40_000)],
    "a coding": [("transfer-encoding", "chunked")],
    "a connection field": [("connection", "close")],
    "an upgrade": [("upgrade", "websocket")],
    "te": [("te", "gzip")],
    "a name in capitals": [("X-Y", "z")],
    "a name with a space": [("x y", "z")],
    "a pseudo field that follows": [(":path", "/api/ps")],
    "a pseudo field that nobody knows": [(":x", "y")],
    "a line end": [("x", "a\r\nb: c")],
    "a NUL": [("x", "a\0b")],
    "a length that is no number": [("content-length", "five")],
}

if Version(version("h2")) >= Version("4.4"):
    for what in ("two lengths", "a length with an underscore", "two hosts"):  # Seen by h2 itself since then.
        ENDED[what] = REFUSED.pop(what)[2]


@pytest.mark.parametrize("what", ENDED)
def test_what_ends_the_connection(tls: Gate, upstream: Upstream, cert: Path, what: str) -> None:
    """Its own library refuses it, before there is a request: GOAWAY."""
    with upstream.untouched(), logged(tls, 0), H2(tls.port, cert, lax=True) as client:
        client.request("GET", "/api/tags", *ENDED[what])
        client.until_closed()
        assert not client.has(h2.events.ResponseReceived)


@pytest.mark.parametrize(
    "pseudo",
    [
        [(":authority", "localhost:11434")],
        [(":authority", "localhost:11434"), (":scheme", "https"), (":path", "/api/tags")],
        [(":authority", "localhost"), (":scheme", "https"), (":path", "/api/tags"), (":protocol", "websocket")],
    ],
    ids=["as it should be", "with a path", "extended"],
)
def test_connect(tls: Gate, upstream: Upstream, cert: Path, pseudo: list[tuple[str, str]]) -> None:
    """No tunnel (RFC 9113 section 8.5, RFC 8441), with the key; versions of h2 differ in which of them they end."""
    with upstream.untouched(), H2(tls.port, cert, lax=True) as client:
        credential = ("authorization", BEARER.partition(": ")[2])
        client.h2.send_headers(1, [(":method", "CONNECT"), *pseudo, credential])
        client.flush()
        while not client.closed and not client.has(h2.events.ResponseReceived):
            client.read()
        assert client.closed or client.status(1) == 405


@pytest.mark.parametrize("pseudo", [":method", ":scheme", ":path"])
def test_a_pseudo_field_that_lacks(tls: Gate, upstream: Upstream, cert: Path, pseudo: str) -> None:
    fields = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/")]
    credential = ("authorization", BEARER.partition(": ")[2])
    with upstream.untouched(), logged(tls, 0), H2(tls.port, cert, lax=True) as client:
        client.h2.send_headers(1, [f for f in fields if f[0] != pseudo] + [credential], end_stream=True)
        client.flush()
        client.until_closed()
        assert not client.has(h2.events.ResponseReceived)


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return size.to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


HOARDS: dict[str, list[bytes]] = {
    "a frame that is too long": [frame(0, 0, 1, b"", 2**24 - 1), *[bytes(16_000)] * 1000],
    "a head that is too long": [frame(1, 0, 1, b"", 2**24 - 1), *[bytes(16_000)] * 1000],
    "a head in parts": [frame(1, 0, 1, bytes(16_000)), *[frame(9, 0, 1, bytes(16_000))] * 1000],
    "a head in empty parts": [frame(1, 0, 1, b""), *[frame(9, 0, 1, b"") * 100] * 1000],
}


@pytest.mark.parametrize("what", HOARDS)
def test_what_h2_would_keep(tls: Gate, upstream: Upstream, cert: Path, what: str) -> None:
    """It is cut long before the 16 MB of its length have come, for strangers there are a thousand of them."""
    with upstream.untouched(), H2(tls.port, cert) as client:
        client.read()
        sent, before = 0, tls.rss
        with suppress(ConnectionError, ssl.SSLError):
            for data in HOARDS[what]:
                client.wire.socket.sendall(data)
                sent += len(data)
                time.sleep(0.001)
        assert sent < 4 << 20
    assert tls.rss - before < 5 << 20


@pytest.mark.slow
def test_what_an_impatient_gate_cuts(brief: Gate, upstream: Upstream, cert: Path) -> None:
    """Who leaves no room for an answer, with a key and without; and not a stream that runs.

    Its client gave two requests one id: the end of one is not taken for the end of the other.
    """
    same = ("x-request-id", "mine")
    upstream.hold()
    with (
        H2(brief.port, cert, window=0) as stranger,
        H2(brief.port, cert, window=0) as friend,
        H2(brief.port, cert) as client,
    ):
        assert stranger.status(stranger.request("GET", "/", key=False)) == 401
        assert friend.status(friend.request("GET", "/api/tags")) == 200
        running = client.request("POST", "/api/chat", same, body=chat())
        client.until(h2.events.DataReceived, running)
        assert client.body(client.request("GET", "/api/tags", same))
        stranger.until_closed()
        friend.until_closed()
        upstream.go_on()
        assert b'"done":true' in client.body(running)
    wait_until(lambda: not upstream.open_connections, "the connection upstream to end")
    wait_until(lambda: len(log_lines(brief)) == 4, "four lines in the log")


def test_rapid_reset(tls: Gate, upstream: Upstream, cert: Path) -> None:
    with H2(tls.port, cert) as client:
        client.read()
        with suppress(OSError):
            for _ in range(1000):
                stream = client.request("GET", "/api/tags")
                client.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
                client.flush()
        client.until_closed()
    assert len(upstream.requests) <= 250
    wait_until(lambda: not upstream.open_connections, "the connections upstream to end")
    assert ask_in_tls(tls, cert) == 200


def ask_in_tls(gate: Gate, cert: Path) -> int:
    with H2(gate.port, cert) as client:
        return client.status(client.request("GET", "/api/tags"))


def test_rapid_reset_by_a_stranger(tls: Gate, upstream: Upstream, cert: Path) -> None:
    with upstream.untouched(), H2(tls.port, cert) as client:
        client.read()
        with suppress(OSError):
            for _ in range(1000):
                stream = client.request("GET", "/api/tags", key=False)
                client.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
                client.flush()
        client.until_closed()


def test_cancelling_now_and_then_is_no_offence(tls: Gate, upstream: Upstream, cert: Path) -> None:
    with logged(tls, 21), H2(tls.port, cert) as client:
        for _ in range(20):
            stream = client.request("GET", "/demo/silent/3600")
            wait_until(lambda: upstream.open_connections, "the request upstream")
            client.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            client.flush()
            wait_until(lambda: not upstream.open_connections, "its end")
        assert client.status(client.request("GET", "/api/tags")) == 200


def test_too_many_streams(tls: Gate, upstream: Upstream, cert: Path) -> None:
    upstream.hold()
    with H2(tls.port, cert, lax=True) as client:
        client.read()
        client.h2.remote_settings.max_concurrent_streams = 1000
        client.h2.remote_settings.acknowledge()
        with suppress(OSError):
            for _ in range(200):
                client.request("POST", "/api/chat", body=chat())
        client.until_closed()
        assert len(upstream.requests) <= 128
    wait_until(lambda: not upstream.open_connections, "the connections upstream to end")


# HTTP/2: requests.


def test_ten_streams_do_not_wait_for_each_other(tls: Gate, upstream: Upstream, cert: Path) -> None:
    upstream.hold()
    with logged(tls, 11), H2(tls.port, cert) as client:
        streams = [client.request("POST", "/api/chat", body=chat()) for _ in range(10)]
        for stream in streams:
            assert HELD in client.until(h2.events.DataReceived, stream).data
        assert upstream.open_connections == 10
        other = client.request("GET", "/api/tags")
        assert b"models" in client.body(other)
        upstream.go_on()
        for stream in streams:
            assert b'"done":true' in client.body(stream)
    wait_until(lambda: not upstream.open_connections, "the connections upstream to end")


def test_a_connection_upstream_serves_one_stream_after_the_other(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Never two at once, and none after a stream that was cancelled in the middle of its answer."""
    before = upstream.connections
    with logged(tls, 47), H2(tls.port, cert) as client:
        for _ in range(3):
            assert b"models" in client.body(client.request("GET", "/api/tags"))
        assert upstream.connections - before == 1
        upstream.hold()
        held = [client.request("POST", "/api/chat", body=chat()) for _ in range(2)]
        for stream in held:
            assert HELD in client.until(h2.events.DataReceived, stream).data
        assert upstream.connections - before == 2
        client.h2.reset_stream(held[0])
        client.flush()
        wait_until(lambda: upstream.open_connections == 1, "the connection of the cancelled stream to end")
        assert b"models" in client.body(client.request("GET", "/api/tags"))
        assert upstream.connections - before == 3
        upstream.go_on()
        assert b'"done":true' in client.body(held[1])
        assert b'"done":true' in client.body(client.request("POST", "/api/chat", body=chat()))
        assert upstream.connections - before == 3
        upstream.hold()
        held = [client.request("POST", "/api/chat", body=chat()) for _ in range(40)]
        wait_until(lambda: upstream.open_connections == 40, "a connection each")
        upstream.go_on()
        for stream in held:
            assert b'"done":true' in client.body(stream)
        wait_until(lambda: upstream.open_connections == 32, "the surplus to be closed")


def test_a_body_without_a_length(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """It goes upstream in chunks; bare, Ollama would take it for the next request."""
    inner = b"DELETE /api/delete HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with logged(tls), H2(tls.port, cert) as client:
        assert client.body(client.request("POST", "/demo/sink", body=inner)) == b'{"bytes":%d}' % len(inner)
    assert [(seen.method, seen.body) for seen in upstream.requests] == [("POST", inner)]


def test_more_than_its_length(tls: Gate, upstream: Upstream, cert: Path) -> None:
    with logged(tls), H2(tls.port, cert, lax=True) as client:
        stream = client.request("POST", "/demo/sink", ("content-length", "5"), body=None)
        wait_until(lambda: upstream.requests, "the request upstream")
        client.data(stream, b"123456", end=True)
        client.until_closed()
    assert not upstream.last.complete


def test_a_chunked_body_over_the_limit(tls: Gate, upstream: Upstream, cert: Path) -> None:
    with logged(tls, 2), H2(tls.port, cert) as client:
        stream = client.request("POST", "/api/chat", body=None)
        client.data(stream, bytes(1000))
        wait_until(lambda: upstream.requests and upstream.last.body_length == 1000, "the first part upstream")
        client.data(stream, bytes(30))
        assert client.status(stream) == 413
        assert client.body(stream)
        assert client.status(client.request("GET", "/api/tags")) == 200
    assert not upstream.last.complete or upstream.last.target == "/api/tags"


def test_told_to_continue(tls: Gate, upstream: Upstream, cert: Path) -> None:
    with logged(tls), H2(tls.port, cert) as client:
        fields = (("expect", "100-continue"), ("content-length", "5"))
        stream = client.request("POST", "/demo/sink", *fields, body=None)
        told = client.until(h2.events.InformationalResponseReceived, stream)
        assert [str(word) for pair in told.headers for word in pair] == [":status", "100"]
        client.data(stream, b"12345", end=True)
        assert client.body(stream) == b'{"bytes":5}'


def test_trailers(tls: Gate, upstream: Upstream, cert: Path) -> None:
    with logged(tls, 2), H2(tls.port, cert) as client:
        stream = client.request("POST", "/demo/sink", body=None)
        client.data(stream, b"12345")
        client.h2.send_headers(stream, [("x-trailer", "dropped")], end_stream=True)
        client.flush()
        assert client.body(stream) == b'{"bytes":5}'
        stream = client.request("GET", "/demo/trailers")
        assert client.body(stream) == b"a body and its trailer"
        trailers = client.until(h2.events.TrailersReceived, stream).headers
        assert [str(word) for pair in trailers for word in pair] == ["x-demo-trailer", "here"]


@pytest.mark.parametrize("path", ["/api/tags", "/demo/status/204", "/demo/status/304"])
def test_answers_without_a_body(tls: Gate, upstream: Upstream, cert: Path, path: str) -> None:
    with logged(tls, 2), H2(tls.port, cert) as client:
        assert client.body(client.request("HEAD", path)) == b""
        assert bool(client.body(client.request("GET", path))) == (path == "/api/tags")


def test_a_stream_that_is_cancelled(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Its connection upstream ends at once, and the others go on."""
    upstream.hold()
    with logged(tls, 2) as lines, H2(tls.port, cert) as client:
        other, stream = (client.request("POST", "/api/chat", body=chat()) for _ in range(2))
        for one in (stream, other):
            client.until(h2.events.DataReceived, one)
        client.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        client.flush()
        wait_until(lambda: upstream.open_connections == 1, "the connection upstream to end")
        upstream.go_on()
        assert b'"done":true' in client.body(other)
    assert [line.get("reason") for line in lines] == ["client left", None]


def test_a_client_that_leaves(tls: Gate, upstream: Upstream, cert: Path) -> None:
    upstream.hold()
    with logged(tls, 5) as lines, H2(tls.port, cert) as client:
        for stream in [client.request("POST", "/api/chat", body=chat()) for _ in range(5)]:
            client.until(h2.events.DataReceived, stream)
    wait_until(lambda: not upstream.open_connections, "the connections upstream to end")
    assert {line["reason"] for line in lines} == {"client left"}


@pytest.mark.slow
def test_a_client_that_does_not_read(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Its window shut, no more is read from Ollama than a little: memory stays flat, and nothing is lost."""
    size = 48 << 20
    with logged(tls), H2(tls.port, cert, window=0) as client:
        before = tls.rss
        stream = client.request("GET", f"/demo/bytes/{size}")
        assert client.status(stream) == 200
        time.sleep(0.5)
        assert tls.rss - before < 10 << 20
        client.h2.increment_flow_control_window(2**31 - 1 - 65535)
        client.h2.increment_flow_control_window(2**31 - 1, stream)
        client.flush()
        got = 0
        while not client.has(h2.events.StreamEnded):
            client.events.clear()
            client.read()
            got += sum(len(e.data) for e in client.events if isinstance(e, h2.events.DataReceived))
        assert got == size
        assert tls.rss - before < 20 << 20


def test_httpx(tls: Gate, upstream: Upstream, cert: Path) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(10_000)

    key = {"authorization": BEARER.partition(": ")[2]}
    url = f"https://localhost:{tls.port}"
    with httpx.Client(http2=True, verify=trusting(cert), trust_env=False, base_url=url) as client:
        assert client.get("/api/tags").status_code == 401
        for _ in range(3):
            answer = client.get("/api/tags", headers=key)
            assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
        assert client.post("/demo/sink", headers=key, content=pieces()).json() == {"bytes": 200_000}
        with client.stream("POST", "/api/chat", headers=key, content=chat()) as streamed:
            assert b'"done":true' in streamed.read()
        assert client.get("/api/tags").status_code == 401
        assert client.get("/api/tags", headers=key).status_code == 200
    with httpx.Client(http2=True, verify=trusting(cert), trust_env=False, base_url=url) as client:
        assert client.post("/api/chat", content=pieces()).status_code == 401


# HTTP/2: an upstream that is away, or breaks.

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_away_and_back(broken: Gate, script: Scripted, cert: Path) -> None:
    with logged(broken, 3), H2(broken.port, cert) as client:
        stream = client.request("POST", "/v1/messages", body=chat())
        headers = client.headers(stream)
        assert (headers[":status"], headers["retry-after"]) == ("503", "5")
        assert b'"type":"error"' in client.body(stream)
        with script.plays(lambda peer: peer.head() and peer.send(OK)):
            assert client.body(client.request("GET", "/api/tags")) == b"ok"
        assert client.status(client.request("GET", "/api/tags")) == 503


@pytest.mark.parametrize(
    ("data", "status"), [(b"", 502), (b"\0\1\2\3", 502), (OK[:-1], 200), (OK.replace(b"2\r\n", b"2, 3\r\n"), 502)]
)
def test_breaking(broken: Gate, script: Scripted, cert: Path, data: bytes, status: int) -> None:
    """Before the head: an answer of ours. After it: a stream that is reset, which nobody takes for whole."""
    with logged(broken, 2) as lines, H2(broken.port, cert) as client:
        with script.plays(lambda peer: peer.head() and peer.send(data)):
            stream = client.request("GET", "/api/tags")
            assert client.status(stream) == status
            if status == 200:
                client.until(h2.events.StreamReset, stream)
                assert not client.has(h2.events.StreamEnded)
            else:
                assert b"error" in client.body(stream)
        with script.plays(lambda peer: peer.head() and peer.send(OK)):
            assert client.body(client.request("GET", "/api/tags")) == b"ok"
    assert lines[0]["reason"] == "upstream broken"


def test_a_body_that_only_the_end_ends_is_cut_off_by_a_reset(broken: Gate, script: Scripted, cert: Path) -> None:
    more = threading.Event()
    with script.plays(cut_off(more)), logged(broken) as lines, H2(broken.port, cert) as client:
        stream = client.request("GET", "/api/tags")
        assert client.until(h2.events.DataReceived, stream).data == b"hello"
        more.set()
        client.until(h2.events.StreamReset, stream)
        assert not client.has(h2.events.StreamEnded, stream)
    assert (lines[0]["status"], lines[0]["reason"]) == (200, "upstream broken")


LAST = [
    OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    OK.replace(b"\r\n\r\n", b"\r\nConnection: x, Close\r\n\r\n"),
    OK.replace(b"1.1", b"1.0"),
    b"HTTP/1.1 200 OK\r\n\r\nok",
]
REUSED = [OK, b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno"]


def test_what_a_connection_upstream_serves_next(broken: Gate, script: Scripted, cert: Path) -> None:
    """Something only if the answer left it open, and nothing once Ollama is away, whatever the method is."""

    def answer_each(peer: Line) -> None:
        while head := peer.head():
            if b"POST" in head:
                peer.read_until(b"0\r\n\r\n")
            peer.send(answer)
            if answer == LAST[-1]:
                break

    with logged(broken, 2 * len(LAST + REUSED) + 3), H2(broken.port, cert) as client:
        for answer in LAST + REUSED:
            with script.plays(answer_each):
                for _ in range(2):
                    stream = client.request("GET", "/api/tags")
                    client.until(h2.events.StreamEnded, stream)
                assert script.accepted == (1 if answer in REUSED else 2), answer
        answer = OK
        with script.plays(answer_each):
            assert client.body(client.request("GET", "/api/tags")) == b"ok"
            script.hang_up()
            wait_until(lambda: not script.busy, "the connection upstream to end")
            time.sleep(0.1)  # The gate reads of it.
            for _ in range(2):
                assert client.body(client.request("POST", "/api/chat", body=chat())) == b"ok"
            assert script.accepted == 2


def test_a_request_whose_connection_is_dead_is_sent_again_on_a_new_one(
    broken: Gate, script: Scripted, cert: Path
) -> None:
    """All that were kept may be dead, as after a restart of Ollama."""
    together, old = threading.Barrier(3), iter([True] * 3)

    def play(peer: Line) -> None:
        dies = next(old, False)
        while peer.head():
            if dies:
                together.wait(PATIENCE)
            peer.send(OK)
            if dies:
                peer.head()
                return

    with script.plays(play), logged(broken, 4), H2(broken.port, cert) as client:
        for stream in [client.request("GET", "/api/tags") for _ in range(3)]:
            assert client.body(stream) == b"ok"
        assert client.body(client.request("GET", "/api/tags")) == b"ok"
        assert script.accepted == 4


def test_connections_that_are_reset_at_once(broken: Gate, script: Scripted, cert: Path) -> None:
    """As by what listens in front of an Ollama that is away: each request is answered, and none waits for ever."""
    with script.plays(Line.reset), logged(broken, 60), H2(broken.port, cert) as client:
        for _ in range(3):
            streams = [client.request("POST", "/api/chat", body=chat()) for _ in range(20)]
            assert {client.status(stream) for stream in streams} <= {502, 503}


def test_an_answer_that_is_replaced_by_ours_leaves_its_connection_to_the_next(
    script: Scripted, cert: Path, tmp_path: Path
) -> None:
    """A list of models that can't be read, so that nothing of it may be shown; and one that comes too early."""
    (keys := tmp_path / "keys.toml").write_text(entry("few", models=["demo"]))
    keys.chmod(0o600)
    key = ("authorization", bearer("few").partition(": ")[2])

    def play(peer: Line) -> None:
        while peer.head():
            peer.send(OK)

    options = ("--certs", str(cert), "--set", f"ollama_keys_file={keys}")
    with Controlled(script.url, *JSON_LOG, *options) as gate, script.plays(play), H2(gate.port, cert) as client:
        for _ in range(3):
            assert client.status(client.request("GET", "/api/tags", key, key=False)) == 502
        assert script.accepted == 1
        early = client.request("GET", "/api/tags", key, key=False, body=None)
        assert client.status(early) == 502
        wait_until(lambda: not script.busy, "the connection of a request that was not whole to end")
        streams = """
            [peer] = ctx.master.addons.get("ollama_gate").connections
            result = len(peer.http_server.context.layers[-2].streams)
        """
        assert gate.do(streams) == "0"
        assert_sound(gate)


SLOW_REQUEST_HOOK = """
    import asyncio, builtins
    builtins.begun, builtins.go = asyncio.Event(), asyncio.Event()
    class Slow:
        async def request(self, flow):
            if flow.request.method == "POST":
                builtins.begun.set()
                await builtins.go.wait()
    ctx.master.addons.add(Slow())
"""
BEGUN = "import builtins; result = builtins.begun.is_set()"


def test_a_slow_hook_does_not_stop_the_other_streams(shared_upstream: Upstream, cert: Path) -> None:
    """Also not if the body came before the connection upstream was up."""
    with Controlled(shared_upstream.url, *JSON_LOG, "--certs", str(cert)) as gate, H2(gate.port, cert) as client:
        gate.do(SLOW_REQUEST_HOOK)
        slow = client.request("POST", "/api/chat", body=chat())
        wait_until(lambda: gate.do(BEGUN) == "True", "the hook")
        assert client.status(client.request("GET", "/api/tags")) == 200
        gate.do("import builtins; builtins.go.set()")
        assert b'"done":true' in client.body(slow)
        assert_sound(gate)


def test_a_stream_that_has_not_heard_yet(script: Scripted, cert: Path) -> None:
    """Its connection upstream is gone while a hook of somebody else's addon runs, and another stream looks for one."""

    heads = []

    def play(peer: Line) -> None:
        while head := peer.head():
            heads.append(head)
            if b"/api/tags" in head:
                peer.send(OK)
            else:
                peer.read_all()

    with Controlled(script.url, *JSON_LOG, "--certs", str(cert)) as gate, script.plays(play):
        gate.do(SLOW_REQUEST_HOOK)
        with H2(gate.port, cert) as client:
            slow = client.request("POST", "/api/chat", body=None)
            wait_until(lambda: heads, "the request upstream")
            client.data(slow, b"x", end=True)
            wait_until(lambda: gate.do(BEGUN) == "True", "the hook")
            script.hang_up()
            for _ in range(3):
                assert client.body(client.request("GET", "/api/tags")) == b"ok"
            gate.do("import builtins; builtins.go.set()")
            assert client.status(slow) == 502
        assert_sound(gate)


@pytest.mark.slow
def test_an_answer_before_the_body_was_sent(broken: Gate, script: Scripted, cert: Path) -> None:
    play = lambda peer: peer.head() and peer.send(OK).read_all()  # noqa: E731
    with script.plays(play), logged(broken, 2), H2(broken.port, cert) as client:
        stream = client.request("POST", "/api/blobs/sha256:0", ("content-length", "1000000"), body=None)
        assert client.body(stream) == b"ok"
        assert client.until(h2.events.StreamReset, stream).error_code == h2.errors.ErrorCodes.NO_ERROR
        wait_until(lambda: not script.busy, "the connection upstream to end")
        assert client.body(client.request("GET", "/api/tags")) == b"ok"


def test_half_open_connections_make_room(shared_upstream: Upstream, cert: Path) -> None:
    """Also in the middle of a handshake, and after it."""
    options = ("--certs", str(cert), "--set", "ollama_max_connections=8")
    with Gate(shared_upstream.url, *options) as gate, ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(Wire(gate.port, b"\x16\x03\x01\x02\x00\x01"))
            stack.enter_context(Wire(gate.port))
            stack.enter_context(H2(gate.port, cert))
        assert ask_in_tls(gate, cert) == 200
        assert_sound(gate)
