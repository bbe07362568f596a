"""Nothing a stranger sends costs anything: refusals before the body, bounds, strict parsing, over raw sockets."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from tests.harness.base import BEARER, PATIENCE, SECONDS, wait_until
from tests.harness.gate import Gate, assert_sound, logged, streams
from tests.harness.upstream import Upstream
from tests.harness.wire import Line, Wire, ask, assert_gone, chat, head, parse, send_until_closed, wires

pytestmark = pytest.mark.ways

JSON_LOG = ("--set", "ollama_access_log=-")


def kept(upstream: Upstream, *options: str) -> Iterator[Gate]:
    sets = [word for option in options for word in ("--set", option)]
    with Gate(upstream.url, *JSON_LOG, *sets) as gate:
        yield gate
        assert_sound(gate, upstream)


@pytest.fixture(scope="module")
def gate(shared_upstream: Upstream) -> Iterator[Gate]:
    """A gate as it comes."""
    yield from kept(shared_upstream)


@pytest.fixture(scope="module")
def small(shared_upstream: Upstream) -> Iterator[Gate]:
    """A gate with small bounds of everything that is sent."""
    yield from kept(
        shared_upstream,
        "ollama_max_head=2048",
        "ollama_max_header_count=10",
        "ollama_max_target=300",
        "ollama_max_body=infer=1k",
        "ollama_max_body=unknown=100k",
        "ollama_head_timeout=1",
        "ollama_idle_timeout=1",
    )


@pytest.fixture
def narrow(shared_upstream: Upstream) -> Iterator[Gate]:
    """A gate with few places: ten in all, six of them for one address. A connection of another test would take one."""
    yield from kept(shared_upstream, "ollama_max_connections=10", "ollama_max_connections_per_client=6")


# Refused before the body.

BODIES: dict[str, bytes] = {
    "sized": head("POST", "/api/chat", "Content-Length: 2000000000"),
    "chunked": head("POST", "/api/chat", "Transfer-Encoding: chunked"),
    "expected": head("POST", "/api/blobs/sha256:0", "Expect: 100-continue", "Content-Length: 2000000000"),
    "expected chunks": head("POST", "/v1/messages", "Expect: 100-continue", "Transfer-Encoding: chunked"),
    "http/1.0": b"POST /api/chat HTTP/1.0\r\nContent-Length: 2000000000\r\n\r\n",
    "a wrong key": head("POST", "/api/chat", "Authorization: Bearer wrong", "Content-Length: 2000000000"),
    "kept alive": head("POST", "/api/chat", "Connection: keep-alive", "Content-Length: 2000000000"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_refused_before_the_body(gate: Gate, upstream: Upstream, kind: str) -> None:
    with upstream.untouched(), logged(gate) as lines, Wire(gate.port, BODIES[kind]) as wire:
        answer = parse(wire.read_all())  # Our half is closed at once: this ends, although the client has sent no body.
    assert answer.raw.startswith(b"HTTP/1.1 401 "), "no 100 Continue before it"
    assert answer.headers["connection"] == "close"
    assert answer.json
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert lines[0]["status"] == 401
    assert lines[0]["bytes_in"] == 0


def test_the_answer_is_there_while_the_body_is_sent(gate: Gate) -> None:
    """A client that sends first and reads later reads the answer, not a reset."""
    for _ in range(20):
        with Wire(gate.port, head("POST", "/api/chat", "Content-Length: 200000")) as wire:
            for _ in range(20):
                wire.send(bytes(10_000))
            answer = parse(wire.read_all())
            assert answer.status == 401
            assert answer.json


@pytest.mark.slow
def test_what_was_refused_is_gone_within_seconds(gate: Gate, small: Gate, upstream: Upstream) -> None:
    """The lingering close ends, whatever the client does: here it drips on, in each of the connections."""
    refused = [(gate.port, data) for data in BODIES.values()] + [(small.port, data) for data, _ in BOUNDS.values()]
    broken = post(BEARER.encode(), b"Transfer-Encoding: chunked")
    refused += [(gate.port, broken + data) for data in BROKEN_CHUNKS.values()]
    refused += [(small.port, head("POST", "/api/chat", BEARER, "Transfer-Encoding: chunked") + chunks(1000, 1000))]
    with ExitStack() as stack:
        lines = [stack.enter_context(Wire(port, data)) for port, data in refused]
        for wire in lines:
            assert b"HTTP/1.1 4" in wire.read_all()
        assert_gone(*lines)


@pytest.mark.slow
def test_floods_are_cut_and_memory_stays_flat(gate: Gate, upstream: Upstream) -> None:
    """Each of the connections is closed after a fraction of what it would send.

    40 MB is more than the kernel's buffers hold (32 and 4 MB) while the gate has no processor.
    """
    kinds = [
        (BODIES["sized"], bytes(65536)),
        (BODIES["chunked"], b"10000\r\n" + bytes(65536) + b"\r\n"),
        (b"GET / HTTP/1.1\r\nX: ", b"x" * 65536),
        (head("GET", "/api/tags"), head("GET", "/api/tags") * 1000),
    ]

    def flood(kind: tuple[bytes, bytes]) -> None:
        with Wire(gate.port, kind[0]) as wire:
            send_until_closed(wire, kind[1], 40 << 20, PATIENCE)

    with ThreadPoolExecutor(len(kinds)) as pool, upstream.untouched():
        list(pool.map(flood, kinds))
        before = gate.rss
        for _ in range(4):
            list(pool.map(flood, kinds))
            assert gate.rss - before < 5 << 20


@pytest.mark.slow
def test_a_refusal_reaches_a_client_that_goes_on_writing(small: Gate, upstream: Upstream) -> None:
    """As clients do that read once they have written: slowly, in a burst, and more than is read of it."""

    def write_on(who: str) -> None:
        data = head("POST", "/api/chat", who, "Content-Length: 2000000000")
        with Wire(small.port, data) as wire:
            for _ in range(25):
                wire.send(bytes(10_000))
                time.sleep(0.1)
            assert parse(wire.read_all()).status == (413 if who == BEARER else 401)
        with Wire(small.port, data) as wire:
            wire.socket.settimeout(0.3)
            with suppress(TimeoutError):
                wire.send(bytes(4 << 20))
            wire.socket.settimeout(PATIENCE)
            assert b"HTTP/1.1 4" in wire.socket.recv(65536)

    with upstream.untouched(), ThreadPoolExecutor(2) as pool:
        list(pool.map(write_on, ("Authorization: Bearer wrong", BEARER)))


# Bounds.


def chunks(*sizes: int) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (size, bytes(size)) for size in sizes)


BOUNDS: dict[str, tuple[bytes, int]] = {
    "a head without end": (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 2100, 431),
    "a head that is too long": (head("GET", "/", "X: " + "x" * 2048), 431),
    "too many fields": (head("GET", "/", *(f"X-{n}: 1" for n in range(10))), 431),
    "a target that is too long": (head("GET", "/" + "a" * 300), 414),
    "a target without end": (b"GET /" + b"a" * 400, 414),
    "a method without end": (b"A" * 400, 414),
    "a body that is too large": (head("POST", "/api/chat", "Content-Length: 1025"), 413),
    "a body that is far too large": (head("POST", "/v1/messages", "Content-Length: 999999999999999999"), 413),
    "expected, and too large": (
        head("POST", "/api/generate", "Content-Length: 1025", "Expect: 100-continue"),
        413,
    ),
}


@pytest.mark.parametrize("what", BOUNDS)
def test_bounds(small: Gate, upstream: Upstream, what: str) -> None:
    """With the key, and without: to strangers, a body is not too large but none of theirs."""
    data, status = BOUNDS[what]
    ids: list[str] = []
    expected = [status, 401 if status == 413 else status]
    with upstream.untouched(), logged(small, 2) as lines:
        for sent, wanted in zip((with_the_key(data), data), expected, strict=True):
            with Wire(small.port, sent) as wire:
                answer = parse(wire.read_all())
            assert (answer.status, answer.headers["connection"]) == (wanted, "close")
            assert answer.json["error"]
            ids.append(answer.headers["x-request-id"])
    assert [line["status"] for line in lines] == expected
    assert [line["id"] for line in lines] == ids


def test_within_the_bounds(small: Gate, upstream: Upstream) -> None:
    """The bound itself is allowed."""
    fields = [BEARER, *(f"X-{n}: 1" for n in range(7)), "Connection: close"]
    assert len(fields) + 1 == 10, "and Host"
    assert ask(small.port, "GET", "/api/tags", *fields[:-1]).status == 200
    assert ask(small.port, "GET", "/api/tags?" + "a" * 290, BEARER).status == 200
    room = 2048 - len(head("GET", "/api/tags", BEARER, "Connection: close", "X: ")) + 4
    assert ask(small.port, "GET", "/api/tags", BEARER, "X: " + "x" * room).status == 200
    assert ask(small.port, "GET", "/api/tags", BEARER, "X: " + "x" * (room + 1)).status == 431
    assert ask(small.port, "POST", "/api/chat", BEARER, body=chat().ljust(1024)).status == 200
    assert upstream.last.body_length == 1024


def test_a_chunked_body_over_the_limit(small: Gate, upstream: Upstream) -> None:
    """It has begun to go upstream, and breaks off there: Ollama never takes it for a whole one."""
    start = head("POST", "/api/chat", BEARER, "Transfer-Encoding: chunked")
    with logged(small) as lines, Wire(small.port, start + chunks(1000)) as wire:
        wait_until(lambda: upstream.requests and upstream.last.body_length == 1000, "the first chunk upstream")
        wire.send(chunks(30))
        answer = parse(wire.read_all())
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert answer.json["error"]
    assert not upstream.last.complete
    assert upstream.last.body_length == 1000
    assert (lines[0]["status"], lines[0]["reason"]) == (413, "body too large")


def test_a_class_without_a_limit(small: Gate, upstream: Upstream) -> None:
    """And the limit of another class is its own."""
    big = bytes(200_000)
    assert ask(small.port, "POST", "/api/blobs/sha256:" + "0" * 64, BEARER, body=big).status == 400
    assert upstream.last.body_length == len(big)
    assert ask(small.port, "POST", "/demo/sink", BEARER, body=bytes(100 * 1024)).status == 200
    assert ask(small.port, "POST", "/demo/sink", BEARER, body=bytes(100 * 1024 + 1)).status == 413


def test_a_head_that_takes_too_long(small: Gate, upstream: Upstream) -> None:
    ids: set[str] = set()
    begun = (b"G", b"GET / HTTP/1.1\r\nHost: x", BEARER.encode(), b"GET / HTTP/1.1\r\nX: ")
    with upstream.untouched(), logged(small, 4) as lines, ExitStack() as stack:
        *silent, dripping = [stack.enter_context(Wire(small.port, data)) for data in begun]
        send_until_closed(dripping, b"x", 1000, pause=0.1)
        for answer in [parse(wire.read_all()) for wire in (*silent, dripping)]:
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert answer.json["error"]
            ids.add(answer.headers["x-request-id"])
    assert [line["status"] for line in lines] == [408] * 4
    assert {line["id"] for line in lines} == ids


def test_a_further_head_that_takes_too_long(small: Gate) -> None:
    """The clock of the head starts with its first byte, and not with the idle time before it."""
    with logged(small, 2), Wire(small.port, head("GET", "/api/tags", BEARER)) as wire:
        assert wire.read_response().status == 200
        time.sleep(0.6)
        wire.send(b"GET /")
        time.sleep(0.6)  # The idle time is over.
        wire.send(b"api/tags HTTP/1.1\r\nHost: x\r\n")
        assert parse(wire.read_all()).status == 408


def test_silence_is_cut_without_a_word(small: Gate) -> None:
    """Before a request and between two: nobody waits for an answer."""
    with (
        logged(small),
        Wire(small.port) as silent,
        Wire(small.port, b"\r\n") as empty,
        Wire(small.port, head("GET", "/api/tags", BEARER)) as friend,
    ):
        assert friend.read_response().status == 200
        assert [wire.read_all() for wire in (silent, empty, friend)] == [b""] * 3


# Connections.


def test_half_open_connections_make_room(narrow: Gate, upstream: Upstream) -> None:
    """The oldest go first, those of strangers before those that were let in once."""
    with Wire(narrow.port, head("GET", "/api/tags", BEARER)) as friend:
        assert friend.read_response().status == 200
        with wires(narrow.port, 30, b"GET / HTTP") as strangers:
            assert ask(narrow.port, "GET", "/api/tags", BEARER).status == 200
            assert_gone(strangers[0])
            friend.send(head("GET", "/api/tags", BEARER))
            assert friend.read_response().status == 200, "it was let in once, so strangers went before it"
    narrow.find("connections without a request were closed")


def test_an_idle_friend_makes_room_too(narrow: Gate, upstream: Upstream) -> None:
    with ExitStack() as stack:
        for _ in range(6):
            friend = stack.enter_context(Wire(narrow.port, head("GET", "/api/tags", BEARER)))
            assert friend.read_response().status == 200
        assert ask(narrow.port, "GET", "/api/tags", BEARER).status == 200


def test_a_lingering_stranger_makes_room_too(narrow: Gate, upstream: Upstream) -> None:
    with wires(narrow.port, 30, BODIES["sized"]):
        assert ask(narrow.port, "GET", "/api/tags", BEARER).status == 200


def end_whole(upstream: Upstream, *running: Line) -> None:
    upstream.go_on()
    for one in running:
        text = one.read_all()
        assert b'"done":true' in text
        assert text.endswith(b"0\r\n\r\n")


def refused_as_full(gate: Gate, source: str = "127.0.0.1") -> bool:
    """A request is answered 503 at once."""
    begun = time.monotonic()
    with wires(gate.port, 1, source=source) as (wire,):
        answer = parse(wire.read_all())  # It comes before anything was sent.
    assert time.monotonic() - begun < SECONDS
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert answer.headers["retry-after"].isdigit()
    assert answer.headers["x-request-id"]
    return bool(answer.json["error"])


def test_full_for_one_client(narrow: Gate, upstream: Upstream) -> None:
    """All of its places are taken by streams: the next gets a 503, and other clients notice nothing."""
    with streams(narrow, upstream, 6) as running:
        assert refused_as_full(narrow)
        with wires(narrow.port, 1, head("GET", "/api/tags", BEARER), "127.0.0.2") as (other,):
            assert other.read_response().status == 200
        end_whole(upstream, *running)
    assert ask(narrow.port, "GET", "/api/tags", BEARER).status == 200


def test_full_for_all(narrow: Gate, upstream: Upstream) -> None:
    with streams(narrow, upstream, 6) as some, streams(narrow, upstream, 4, "127.0.0.2") as others:
        assert refused_as_full(narrow, "127.0.0.3")
        end_whole(upstream, *some, *others)
    with wires(narrow.port, 1, head("GET", "/api/tags", BEARER), "127.0.0.3") as (wire,):
        assert wire.read_response().status == 200


def test_running_streams_are_untouched_by_a_flood(narrow: Gate, upstream: Upstream) -> None:
    with (
        streams(narrow, upstream, 3) as running,
        wires(narrow.port, 100, b"GET /api/tags HTTP/1.1\r\n"),
        wires(narrow.port, 100, b"", "127.0.0.2"),
    ):
        assert ask(narrow.port, "GET", "/api/tags", BEARER).status == 200
        end_whole(upstream, *running)


def test_what_is_refused_gives_its_place_back(narrow: Gate) -> None:
    for _ in range(50):
        assert ask(narrow.port, "GET", "/api/tags").status == 401
        with Wire(narrow.port):
            pass
    assert ask(narrow.port, "GET", "/api/tags", BEARER).status == 200


# Strict parsing. None of these may be read in two ways, so each is refused whoever sends it, and the connection ends.

LINE = b"GET /api/tags HTTP/1.1\r\n"
HOST = b"Host: gate\r\n"
SMUGGLED = b"GET /api/ps HTTP/1.1\r\nHost: gate\r\n\r\n"


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return b"POST /demo/sink HTTP/1.1\r\nHost: gate\r\n" + b"".join(f + b"\r\n" for f in fields) + b"\r\n" + body


def get(*fields: bytes, line: bytes = LINE) -> bytes:
    return line + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


STRICT: dict[str, tuple[bytes, int]] = {
    # framing
    "length and chunks": (post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED), 400),
    "chunks and length": (post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + SMUGGLED), 400),
    "two lengths": (post(b"Content-Length: 5", b"Content-Length: 50", body=b"12345" + SMUGGLED), 400),
    "two equal lengths": (post(b"Content-Length: 5", b"Content-Length: 5", body=b"12345"), 400),
    "a list of lengths": (post(b"Content-Length: 5, 5", body=b"12345"), 400),
    "a signed length": (post(b"Content-Length: +5", body=b"12345"), 400),
    "a negative length": (post(b"Content-Length: -5", body=b"12345"), 400),
    "a hexadecimal length": (post(b"Content-Length: 0x5", body=b"12345"), 400),
    "a length with a zero before it": (post(b"Content-Length: 05", body=b"12345"), 400),
    "a length with an underscore": (post(b"Content-Length: 1_0", body=b"1234567890"), 400),
    "a length in other digits": (post("Content-Length: \u0665".encode(), body=b"12345"), 400),
    "an empty length": (post(b"Content-Length:"), 400),
    "a length of 19 digits": (post(b"Content-Length: 1000000000000000000"), 400),
    "a length of 5,000 digits": (post(b"Content-Length: " + b"1" * 5000), 400),
    "an empty coding": (post(b"Transfer-Encoding:", body=SMUGGLED), 400),
    "identity": (post(b"Transfer-Encoding: identity", body=SMUGGLED), 400),
    "gzip": (post(b"Transfer-Encoding: gzip", body=SMUGGLED), 400),
    "gzip and chunks": (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 400),
    "chunks and gzip": (post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"), 400),
    "chunks twice": (post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 400),
    "two codings": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n"), 400),
    "chunks in quotes": (post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 400),
    "chunks with a parameter": (post(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n"), 400),
    "chunks with a vertical tab": (post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    "xchunked": (post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400),
    "chunks in http/1.0": (b"POST /demo/sink HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    # header fields
    "a folded field": (get(b"X: a", b" b"), 400),
    "a folded field, with a tab": (get(b"X: a", b"\tb"), 400),
    "a folded first field": (LINE + b" X: a\r\n" + HOST + b"\r\n", 400),
    "a space before the colon": (get(b"X : a"), 400),
    "a tab before the colon": (get(b"X\t: a"), 400),
    "a space before the colon of the length": (post(b"Content-Length : 5", body=b"12345"), 400),
    "a space before the colon of the coding": (post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"), 400),
    "no colon": (get(b"X"), 400),
    "no name": (get(b": a"), 400),
    "a name with a space": (get(b"X Y: a"), 400),
    "a name with a bracket": (get(b"X(: a"), 400),
    "a name with a NUL": (get(b"X\0: a"), 400),
    "a name that is not ascii": (get("\u017f: a".encode()), 400),
    "a NUL": (get(b"X: a\0b"), 400),
    "an escape": (get(b"X: \x1b[2J"), 400),
    "a delete": (get(b"X: \x7f"), 400),
    "lone surrogates in the target": (get(line=b"GET /\xed\xa0\x80 HTTP/1.1\r\n"), 400),
    "a bare line feed": (get(b"X: a\nY: b"), 400),
    "a bare line feed that ends the head": (LINE + HOST + b"X: a\n\r\n", 400),
    "only bare line feeds": (LINE.replace(b"\r", b"") + HOST.replace(b"\r", b"") + b"\n", 400),
    "a bare carriage return": (get(b"X: a\rY: b"), 400),
    "a carriage return too many": (get(b"X: a\r"), 400),
    "two hosts": (get(HOST.strip()), 400),
    "no host": (LINE + b"\r\n", 400),
    "a host with a space": (LINE + b"Host: a b\r\n\r\n", 400),
    "a host with a slash": (LINE + b"Host: a/b\r\n\r\n", 400),
    "a host with a user": (LINE + b"Host: u@a\r\n\r\n", 400),
    "another expectation": (get(b"Expect: 200-ok"), 417),
    "two expectations": (get(b"Expect: 100-continue, 200-ok"), 417),
    # the request line
    "no version": (b"GET /\r\n" + HOST + b"\r\n", 400),
    "http/0.9": (b"GET /\r\n\r\n", 400),
    "http/1.2": (get(line=b"GET / HTTP/1.2\r\n"), 505),
    "http/2.0": (get(line=b"GET / HTTP/2.0\r\n"), 505),
    "the preface of http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "http in lower case": (get(line=b"GET / http/1.1\r\n"), 400),
    "a version with more digits": (get(line=b"GET / HTTP/1.10\r\n"), 400),
    "another protocol": (get(line=b"GET / ICY/1.1\r\n"), 400),
    "an ssh client": (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", 400),
    "two spaces": (get(line=b"GET  / HTTP/1.1\r\n"), 400),
    "a tab": (get(line=b"GET\t/ HTTP/1.1\r\n"), 400),
    "a space in the target": (get(line=b"GET /a b HTTP/1.1\r\n"), 400),
    "a space before": (get(line=b" GET / HTTP/1.1\r\n"), 400),
    "a space after": (get(line=b"GET / HTTP/1.1 \r\n"), 400),
    "a method that is no token": (get(line=b"G(T / HTTP/1.1\r\n"), 400),
    "a method in lower case": (get(line=b"get /api/tags HTTP/1.1\r\n"), 405),
    "a method that nobody knows": (get(line=b"BREW /api/tags HTTP/1.1\r\n"), 405),
    "a long method": (get(line=b"G" * 33 + b" /api/tags HTTP/1.1\r\n"), 400),
    "trace": (get(line=b"TRACE /api/tags HTTP/1.1\r\n"), 405),
    "connect": (get(line=b"CONNECT gate:11434 HTTP/1.1\r\n"), 405),
    "connect to a path": (get(line=b"CONNECT /api/tags HTTP/1.1\r\n"), 405),
    "an absolute target": (get(line=b"GET http://example.com/api/tags HTTP/1.1\r\n"), 421),
    "an absolute target with a user": (get(line=b"GET http://u@127.0.0.1/api/tags HTTP/1.1\r\n"), 421),
    "a target with another scheme": (get(line=b"GET file:///etc/passwd HTTP/1.1\r\n"), 421),
    "an authority": (get(line=b"GET gate:80 HTTP/1.1\r\n"), 421),
    "an asterisk": (get(line=b"OPTIONS * HTTP/1.1\r\n"), 421),
    "an empty target": (get(line=b"GET  HTTP/1.1\r\n"), 400),
    "a fragment": (get(line=b"GET /#a HTTP/1.1\r\n"), 400),
    "a target that is not ascii": (get(line="GET /\u00e9 HTTP/1.1\r\n".encode()), 400),
    "a target with a NUL": (get(line=b"GET /\0 HTTP/1.1\r\n"), 400),
    "a target with an escape": (get(line=b"GET /\x1b[2J HTTP/1.1\r\n"), 400),
    "garbage": (bytes(range(23, 256)) + b"\r\n\r\n", 400),
    "an empty line too many": (b"\r\n\r\n\r\n\0", 400),
}


def with_the_key(data: bytes) -> bytes:
    """The credential goes after the first line, where it is read by anyone who takes this for HTTP."""
    first, end, rest = data.partition(b"\r\n")
    return first + end + BEARER.encode() + b"\r\n" + rest


@pytest.mark.parametrize("what", STRICT)
def test_strict(gate: Gate, upstream: Upstream, what: str) -> None:
    """With the key, and without."""
    data, status = STRICT[what]
    ids: list[str] = []
    with upstream.untouched(), logged(gate, 2) as lines:
        for sent in (data, data if status == 505 else with_the_key(data)):
            with Wire(gate.port, sent) as wire:
                answer = parse(wire.read_all())
            assert (answer.status, answer.headers["connection"]) == (status, "close"), answer
            assert answer.json["error"]
            assert answer.raw.count(b"HTTP/1.1 ") == 1, "one answer, and no second request was seen"
            ids.append(answer.headers["x-request-id"])
    assert [(line["status"], line["reason"]) for line in lines] == [(status, "malformed")] * 2
    assert [line["id"] for line in lines] == ids


@pytest.mark.parametrize("key", [True, False], ids=["with the key", "without"])
def test_strict_at_any_split(gate: Gate, upstream: Upstream, key: bool) -> None:
    """Where the bytes are parted makes no difference."""
    for what in ("length and chunks", "a bare line feed", "a carriage return too many", "a folded field", "two hosts"):
        data, status = STRICT[what]
        data = with_the_key(data) if key else data
        with upstream.untouched():
            for at in range(1, min(len(data), 120), 7):
                with Wire(gate.port, data[:at]) as wire:
                    time.sleep(0.002)
                    with suppress(OSError):  # It knew before.
                        wire.send(data[at:])
                    assert parse(wire.read_all()).status == status


GOOD_BUT_ODD: dict[str, bytes] = {
    "an empty line before": b"\r\n" + get(BEARER.encode()),
    "white space around a value": get(BEARER.encode().replace(b": ", b":\t  ") + b" \t"),
    "an empty value": get(BEARER.encode(), b"X:"),
    "names in any case": get(BEARER.upper().replace("BEARER " + BEARER[22:].upper(), "Bearer " + BEARER[22:]).encode()),
    "utf-8 in a value": get(BEARER.encode(), "X: \u00e9\u4e16".encode()),
    "bytes that are no utf-8": get(BEARER.encode(), b"X: \xff\xfe"),
    "lone surrogates": get(BEARER.encode(), b"X: \xed\xa0\x80"),
    "an empty upgrade": get(BEARER.encode(), b"Connection: upgrade", b"Upgrade:"),
    "an empty expectation": get(BEARER.encode(), b"Expect:"),
    "a zero length": get(BEARER.encode(), b"Content-Length: 0"),
    "http/1.0 without a host": b"GET /api/tags HTTP/1.0\r\n" + BEARER.encode() + b"\r\n\r\n",
    "an empty query": get(BEARER.encode(), line=b"GET /api/tags? HTTP/1.1\r\n"),
    "a host with a port": LINE + b"Host: gate:8081\r\n" + BEARER.encode() + b"\r\n\r\n",
    "a host that is an address": LINE + b"Host: [::1]:8081\r\n" + BEARER.encode() + b"\r\n\r\n",
    "an empty host": LINE + b"Host:\r\n" + BEARER.encode() + b"\r\n\r\n",
    "te in capitals": post(BEARER.encode(), b"Transfer-Encoding: CHUNKED", body=b"5;x=y\r\n12345\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("what", GOOD_BUT_ODD)
def test_good_but_odd(gate: Gate, upstream: Upstream, what: str) -> None:
    """And at any split: byte by byte."""
    data = GOOD_BUT_ODD[what]
    with logged(gate), Wire(gate.port, data) as wire:
        assert wire.read_response().status == 200
    with logged(gate), Wire(gate.port) as wire:
        for byte in data:
            wire.send(bytes([byte]))
        assert wire.read_response().status == 200


# Bodies.

BROKEN_CHUNKS = {
    "no number": b"x\r\n",
    "a negative number": b"-1\r\n",
    "a number with a prefix": b"0x5\r\n12345\r\n",
    "a number with an underscore": b"1_0\r\n1234567890\r\n",
    "a number of 30 digits": b"1" * 30 + b"\r\n",
    "bare line feeds": b"5\n12345\n0\n\n",
    "no line end after the data": b"5\r\n123456\r\n",
    "a line without end": b"5;" + b"x" * 20_000,
    "trailers without end": b"0\r\n" + b"X: y\r\n" * 4000,
    "a trailer that is none": b"0\r\nx y z\r\n\r\n",
    "a space before the number": b" 5\r\n12345\r\n",
}


@pytest.mark.parametrize("what", BROKEN_CHUNKS)
def test_broken_chunks(gate: Gate, upstream: Upstream, what: str) -> None:
    start = post(BEARER.encode(), b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n")
    with logged(gate) as lines, Wire(gate.port, start) as wire:
        wait_until(lambda: upstream.requests and upstream.last.body_length == 3, "the first chunk upstream")
        wire.send(BROKEN_CHUNKS[what])
        answer = parse(wire.read_all())
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert answer.json["error"]
    assert not upstream.last.complete
    assert (lines[0]["status"], lines[0]["reason"]) == (400, "malformed body")
    assert lines[0]["id"] == answer.headers["x-request-id"]


def test_a_body_that_ends_early(gate: Gate, upstream: Upstream) -> None:
    with logged(gate) as lines, Wire(gate.port, post(BEARER.encode(), b"Content-Length: 10", body=b"12345")):
        wait_until(lambda: upstream.requests and upstream.last.body_length == 5, "the body upstream")
    assert lines[0]["reason"] == "client left"
    wait_until(lambda: not upstream.open_connections, "the connection upstream to end")
    assert not upstream.last.complete


def test_trailers_of_a_request_are_dropped(gate: Gate, upstream: Upstream) -> None:
    """Allowed by RFC 9110 section 6.5.1, and what follows is the next request."""
    data = post(
        BEARER.encode(), b"Transfer-Encoding: chunked", body=b"5\r\n12345\r\n0\r\nAuthorization: x\r\nX: y\r\n\r\n"
    )
    with logged(gate, 2), Wire(gate.port, data + get(BEARER.encode())) as wire:
        assert wire.read_response().json == {"bytes": 5}
        assert wire.read_response().json["models"]
    assert [seen.target for seen in upstream.requests] == ["/demo/sink", "/api/tags"]
    assert upstream.requests[0].complete


def test_trailers_of_a_response_arrive(gate: Gate) -> None:
    with logged(gate, 2), Wire(gate.port, head("GET", "/demo/trailers", BEARER)) as wire:
        raw = wire.read_until(b"X-Demo-Trailer: here\r\n\r\n")
        assert b"\r\n0\r\nX-Demo-Trailer: here\r\n\r\n" in raw
        wire.send(head("GET", "/api/tags", BEARER))
        assert wire.read_response().status == 200


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(gate: Gate, status: int) -> None:
    with logged(gate, 2), Wire(gate.port, head("GET", f"/demo/status/{status}", BEARER)) as wire:
        assert parse(wire.read_until(b"\r\n\r\n")).status == status
        wire.send(head("GET", "/api/tags", BEARER))
        assert wire.read_response().status == 200
        assert not wire.received


@pytest.mark.parametrize("path", ["/api/tags", "/", "/api/blobs/sha256:" + "0" * 64, "/nowhere"])
def test_head(gate: Gate, path: str) -> None:
    with logged(gate, 2), Wire(gate.port, head("HEAD", path, BEARER)) as wire:
        assert parse(wire.read_until(b"\r\n\r\n"), head=True).status in (200, 404)
        wire.send(head("GET", "/api/tags", BEARER))
        assert wire.read_response().status == 200
        assert not wire.received


@pytest.mark.parametrize("keep", [b"", b"Connection: keep-alive\r\n"])
def test_an_http_1_0_client_of_a_chunked_answer(gate: Gate, upstream: Upstream, keep: bytes) -> None:
    """It knows no chunks: the body comes bare, and the end of the connection ends it."""
    body = chat()
    data = b"POST /api/chat HTTP/1.0\r\n%b%b\r\nContent-Length: %d\r\n\r\n" % (keep, BEARER.encode(), len(body))
    with logged(gate), Wire(gate.port, data + body) as wire:
        answer = parse(wire.read_all())
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == "close"
    assert answer.body.splitlines()[-1].endswith(b"}")
    assert b'"done":true' in answer.body


def test_http_1_0_is_never_told_to_continue(gate: Gate) -> None:
    """RFC 9110 section 10.1.1."""
    data = b"POST /demo/sink HTTP/1.0\r\n%b\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n12345"
    with Wire(gate.port, data % BEARER.encode()) as wire:
        assert b" 200 OK\r\n" in wire.read_all()[:20]


def test_asked_to_close(gate: Gate) -> None:
    """Also where Ollama says keep-alive, as it does to Anthropic's clients."""
    body = chat(max_tokens=5, stream=True)
    answer = ask(gate.port, "POST", "/v1/messages", BEARER, body=body)
    assert answer.status == 200
    assert answer.headers["connection"] == "close"


# Pipelining.


def test_pipelined(gate: Gate, upstream: Upstream) -> None:
    one = head("GET", "/api/version", BEARER)
    with logged(gate, 20), Wire(gate.port, one * 20) as wire:
        for _ in range(20):
            assert wire.read_response().status == 200
    assert len(upstream.requests) == 20


def test_pipelined_good_then_bad(gate: Gate, upstream: Upstream) -> None:
    body = chat(stream=False)
    good = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body
    with logged(gate, 2) as lines, Wire(gate.port, good + head("GET", "/api/tags") + good) as wire:
        assert wire.read_response().status == 200
        assert parse(wire.read_all()).status == 401
    assert len(upstream.requests) == 1
    assert {line["status"] for line in lines} == {200, 401}


def test_pipelined_bad_then_good(gate: Gate, upstream: Upstream) -> None:
    with upstream.untouched(), logged(gate), Wire(gate.port, head("GET", "/") + head("GET", "/", BEARER)) as wire:
        answer = parse(wire.read_all())
    assert answer.status == 401
    assert answer.raw.count(b"HTTP/1.1") == 1


def test_pipelined_malformed_then_good(gate: Gate, upstream: Upstream) -> None:
    bad = STRICT["length and chunks"][0]
    with upstream.untouched(), logged(gate), Wire(gate.port, with_the_key(bad) + head("GET", "/", BEARER)) as wire:
        assert wire.read_all().count(b"HTTP/1.1") == 1


def test_what_is_sent_ahead_is_bounded(gate: Gate, upstream: Upstream) -> None:
    """While a stream runs, its client sends on: some of it is kept, the rest dropped, and the stream is whole."""
    with logged(gate), streams(gate, upstream, 1) as (wire,):
        before = gate.rss
        sender = threading.Thread(target=lambda: wire.socket.sendall(bytes(32 << 20)))
        sender.start()
        sender.join(PATIENCE)
        assert gate.rss - before < 5 << 20
        end_whole(upstream, wire)


# Leaving.


def test_a_client_that_does_not_read_is_waited_for(gate: Gate, upstream: Upstream) -> None:
    """Nothing is read from Ollama that the client does not take: memory stays flat."""
    size = 64 << 20
    before = gate.rss
    with logged(gate), Wire(gate.port, head("GET", f"/demo/bytes/{size}", BEARER, "Connection: close")) as wire:
        wire.read_until(b"\r\n\r\n")
        time.sleep(0.5)
        assert gate.rss - before < 10 << 20
        got = len(wire.received)
        while piece := wire.socket.recv(1 << 20):
            got += len(piece)
        assert got == size


def test_clients_that_leave_at_any_moment(gate: Gate, upstream: Upstream) -> None:
    """Each request that was read has its one line, and no connection upstream is left."""
    body = chat()
    data = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body
    upstream.hold()
    with logged(gate, 60) as lines:
        for n in range(60):
            with Wire(gate.port, data[: len(data) - n if n < 30 else None]):
                time.sleep(n % 10 / 1000)
    assert {line.get("reason") for line in lines} == {"client left"}
    for n in range(30):
        with Line.to(gate.port, data) as line:
            time.sleep(n % 10 / 1000)
            line.reset()
    wait_until(lambda: not upstream.open_connections, "the connections upstream to end")
