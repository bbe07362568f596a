"""A fuzzer of what Ollama may answer, over raw sockets: framing, 1xx, cuts, resets, bytes too many.

    PYTHONPATH=addons:. .venv/bin/python -m tests.tools.fuzz_responses --answers 20000 --seed 1

Each example is one client connection with some requests on it, pipelined or one after the other, and the answer to each
of them, with the number of its request all through its body. In HTTP/2 the requests of a connection are made at once or
one after the other, and some are cancelled. What must hold:

- no client gets a byte of the answer to another request,
- a whole and well-formed answer arrives as it is,
- a broken one never ends as a whole one does: it is an error of the gate, or its end is visibly missing,
- each connection ends, and the gate logs no exception.
"""

import argparse
import re
import secrets
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from itertools import pairwise
from pathlib import Path

import h2.events
from hypothesis import Phase, given, seed
from hypothesis import strategies as st

from tests.harness.base import BEARER
from tests.harness.certificates import certificate
from tests.harness.gate import NO_FAST_PATH, Gate
from tests.harness.http2 import H2
from tests.harness.upstream import Scripted
from tests.harness.wire import Line
from tests.tools.fuzz import fuzzing

SECONDS = 12.0
"""The longest that a connection may take."""


class Kind(Enum):
    """What a client must make of an answer."""

    WHOLE = auto()
    BROKEN = auto()
    """It ends too early."""
    ODD = auto()
    """It breaks a rule, or is read in more than one way: whatever becomes of it is right but another's bytes."""


class End(Enum):
    """What follows the answer on its connection."""

    STAYS = auto()
    FIN = auto()
    RESET = auto()


@dataclass(frozen=True)
class Reply:
    """The bytes of an answer in which %d is its number, the body that they hold, and what they end with."""

    raw: bytes
    body: bytes
    kind: Kind
    end: End
    pieces: tuple[int, ...] = ()
    """Where its bytes are cut into packets."""

    def numbered(self, number: int) -> tuple[bytes, bytes]:
        mark = b"%06d" % number
        return self.raw.replace(b"NUMBER", mark), self.body.replace(b"NUMBER", mark)


INFORMATIONAL = st.lists(
    st.sampled_from([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"]), max_size=3
)
ODD_HEADS = st.sampled_from([
    b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n<NUMBER>\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nContent-Length: 9\r\n\r\n<NUMBER>",
    b"HTTP/1.1 200 OK\r\nContent-Length: +8\r\n\r\n<NUMBER>",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n<NUMBER>",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n<NUMBER>",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n<NUMBER>",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n<NUMBER>\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n<NUMBER>NO\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-8\r\n<NUMBER>\r\n0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\n<NUMBER>",
    b"HTTP/1.1 304 Not Modified\r\n\r\n<NUMBER>",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n<NUMBER>",
    b"HTTP/1.1 000 No\r\nContent-Length: 8\r\n\r\n<NUMBER>",
    b"HTTP/1.1 abc\r\n\r\n<NUMBER>",
    b"HTTP/2.0 200 OK\r\nContent-Length: 8\r\n\r\n<NUMBER>",
    b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 8\r\n\r\n<NUMBER>",
    b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 8\r\n\r\n<NUMBER>",
    b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 70_000 + b"\r\nContent-Length: 8\r\n\r\n<NUMBER>",
    b"SSH-2.0-x\r\n<NUMBER>",
    b"\x16\x03\x01<NUMBER>",
    b"",
])  # fmt: skip


@st.composite
def chunks(draw: st.DrawFn, body: bytes) -> bytes:
    """The body in chunks, with extensions and trailers."""
    cuts = sorted(8 * cut for cut in draw(st.lists(st.integers(0, len(body) // 8), max_size=4)))
    bounds = [0, *cuts, len(body)]
    parts = [body[start:end] for start, end in pairwise(bounds) if start < end]
    extension = draw(st.sampled_from([b"", b"", b";a=b", b';a="b;c"']))
    trailers = draw(st.sampled_from([b"", b"", b"X-Trailer: a\r\n"]))
    return b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n" + trailers + b"\r\n"


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """An answer, whole, broken or odd."""
    end = draw(st.sampled_from([End.STAYS, End.STAYS, End.FIN, End.RESET]))
    pieces = tuple(sorted(draw(st.lists(st.integers(1, 400), max_size=3))))
    prefix = b"".join(draw(INFORMATIONAL))
    if draw(st.integers(0, 5)) == 0:
        return Reply(prefix + draw(ODD_HEADS), b"", Kind.ODD, draw(st.sampled_from([End.FIN, End.RESET])), pieces)
    body = b"<NUMBER>" * draw(st.sampled_from([1, 1, 2, 30, 400, 40_000]))
    status = draw(st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 500 Oh"]))
    framing = draw(st.sampled_from(["length", "chunks", "chunks", "end"]))
    if framing == "length":
        raw = status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    elif framing == "chunks":
        raw = status + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + draw(chunks(body))
    else:
        raw = status + b"\r\nConnection: close\r\n\r\n" + body
        kind = Kind.WHOLE if end is End.FIN else Kind.BROKEN
        return Reply(prefix + raw, body, kind, End.RESET if end is End.STAYS else end, pieces)
    change = draw(st.sampled_from(["", "", "cut", "extra"]))
    if change == "cut":
        raw = raw[: draw(st.integers(0, len(raw) - 1))]
        return Reply(prefix + raw, b"", Kind.BROKEN, draw(st.sampled_from([End.FIN, End.RESET])), pieces)
    if change == "extra":  # In one packet with the answer, or nobody could tell it from the next one.
        extra = draw(st.sampled_from([b"x", b"0\r\n\r\n", raw]))
        return Reply(prefix + raw + extra, body, Kind.WHOLE, End.STAYS if len(raw) < 10_000 else End.FIN)
    if end is End.RESET:
        return Reply(prefix + raw, body, Kind.ODD, end, pieces)  # A reset may overtake what was sent before it.
    return Reply(prefix + raw, body, Kind.WHOLE, end, pieces)


@dataclass(frozen=True)
class Example:
    """What is on one connection of a client."""

    replies: tuple[Reply, ...]
    pipelined: bool
    version: bytes


EXAMPLES = st.builds(
    Example, st.lists(replies(), min_size=1, max_size=4).map(tuple), st.booleans(), st.just(b"HTTP/1.1")
) | st.builds(Example, st.tuples(replies()), st.just(True), st.just(b"HTTP/1.0"))


class Ollama:
    """The upstream: it answers the request with a number as it was told for that number. `cert`: with TLS."""

    def __init__(self, cert: Path | None = None) -> None:
        self.replies: dict[int, Reply] = {}
        self.server = Scripted().start(partial(self._serve_tls, cert) if cert else self._serve)
        self.url = f"https://localhost:{self.server.port}" if cert else self.server.url

    def _serve_tls(self, cert: Path, line: Line) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert)
        with context.wrap_socket(line.socket, server_side=True) as encrypted:
            self._serve(Line(encrypted))
            with suppress(ValueError):  # It was reset.
                encrypted.unwrap()  # A close_notify: without it, an end is none.

    def _serve(self, line: Line) -> None:
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            found = re.search(rb"/demo/(\d+) ", line.head())
            assert found
            number = int(found[1])
            reply = self.replies[number]
            raw, start = reply.numbered(number)[0], 0
            for cut in (*reply.pieces, len(raw)):
                line.send(raw[start:cut])
                start = max(start, cut)
            if reply.end is End.RESET:
                line.reset()
            if reply.end is not End.STAYS:
                return


@dataclass(frozen=True)
class Received:
    """A response as a client reads it; not `clean` where its end is missing."""

    status: int
    body: bytes
    clean: bool


def read_responses(raw: bytes, reset: bool) -> Iterator[Received]:
    """Read what came on a connection that has ended, by a reset or in order. Raises AssertionError."""
    while raw:
        head, found, raw = raw.partition(b"\r\n\r\n")
        if not found:
            return  # A head that is cut off is no response.
        status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert status, head
        length = re.search(rb"(?im)^content-length: *(\d+)\r?$", head)
        if re.search(rb"(?im)^transfer-encoding: *chunked\r?$", head):
            body, clean, raw = read_chunks(raw)
        elif length or status[1] in (b"204", b"304"):
            size = int(length[1]) if length and status[1] not in (b"204", b"304") else 0
            body, clean, raw = raw[:size], len(raw) >= size, raw[size:]
        else:
            body, clean, raw = raw, not reset, b""
        yield Received(int(status[1]), body, clean)


def read_chunks(raw: bytes) -> tuple[bytes, bool, bytes]:
    """Return (body, whether it is whole, what follows)."""
    body = b""
    while found := re.match(rb"([0-9a-fA-F]+)[^\r\n]*\r\n", raw):
        size, raw = int(found[1], 16), raw[found.end() :]
        if not size:
            while raw and not raw.startswith(b"\r\n"):
                raw = raw.partition(b"\r\n")[2]
            return body, raw.startswith(b"\r\n"), raw[2:]
        body, part = body + raw[:size], raw[size : size + 2]
        if part != b"\r\n":
            return body, False, b""
        raw = raw[size + 2 :]
    return body, False, b""


def converse(port: int, first: int, example: Example) -> tuple[bytes, bool]:
    """Ask; return (what came, whether the connection ended by a reset). Raises AssertionError if it does not end."""
    count, got = len(example.replies), b""
    requests = [
        b"GET /demo/%06d %s\r\nHost: x\r\n%s\r\n%s\r\n"
        % (
            first + at,
            example.version,
            BEARER.encode(),
            b"Connection: close\r\n" if at == count - 1 else b"Connection: keep-alive\r\n",
        )
        for at in range(count)
    ]
    until = time.monotonic() + SECONDS
    with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        packets = [b"".join(requests)] if example.pipelined else requests
        sent = 0
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                if sent < len(packets) and goes_on(got, sent):
                    client.sendall(packets[sent])
                    sent += 1
                assert time.monotonic() < until, f"it did not end: {got[-200:]!r}"
                client.settimeout(SECONDS)
                if not (data := client.recv(1 << 20)):
                    return got, False
                got += data
        return got, True


def goes_on(got: bytes, sent: int) -> bool:
    """Whether so many responses are here, and the connection may be used again."""
    responses = list(read_responses(got, reset=True))
    ends = re.search(rb"(?im)^connection: *close\r?$", got)
    return len(responses) == sent and all(response.clean for response in responses) and not ends


def converse_http2(
    port: int, cert: Path, first: int, example: Example, cancelled: Collection[int]
) -> dict[int, Received]:
    """Ask in HTTP/2; return what came, by the place of its request. Raises AssertionError if it does not end."""
    with H2(port, cert) as client:
        client.h2.decoder.max_header_list_size = 1 << 20
        client.wire.socket.settimeout(SECONDS)
        places = {}

        def end(*streams: int) -> None:
            while not all(
                client.has(h2.events.StreamEnded, one) or client.has(h2.events.StreamReset, one) for one in streams
            ):
                assert not client.closed, "the connection ended"
                client.read()

        for at in range(len(example.replies)):
            stream = client.request("GET", f"/demo/{first + at:06}")
            if at in cancelled:
                client.h2.reset_stream(stream)
                client.flush()
                continue
            places[stream] = at
            if not example.pipelined:
                end(stream)
        end(*places)
        return {at: received(client, stream) for stream, at in places.items()}


def received(client: H2, stream: int) -> Received:
    parts = [e.data for e in client.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream]
    begun = client.has(h2.events.ResponseReceived, stream)
    return Received(client.status(stream) if begun else 0, b"".join(parts), client.has(h2.events.StreamEnded, stream))


def check(first: int, example: Example, responses: Mapping[int, Received]) -> None:
    """Compare what came, by the place of its request, with what was answered. Raises AssertionError."""
    assert len(responses) <= len(example.replies), responses
    for at, response in responses.items():
        reply = example.replies[at]
        body = reply.numbered(first + at)[1]
        own = response.status in (502, 503) and response.body.startswith(b"{")
        foreign = {int(number) for number in re.findall(rb"<(\d{6})>", response.body)} - {first + at}
        assert not foreign, f"bytes of {foreign} in the answer to {first + at}"
        if reply.kind is Kind.WHOLE:
            assert response.clean, f"a whole answer was cut: {response.status} {response.body[:100]!r}"
            assert response.body == body, f"another body: {response.status} {response.body[:100]!r}"
        elif reply.kind is Kind.BROKEN:
            assert own or not response.clean, f"a clean end of a broken answer: {response.body[-100:]!r}"


@contextmanager
def fuzzed_gate(
    *, fast_path: bool, cert: Path | None = None, upstream_cert: Path | None = None
) -> Iterator[tuple[Gate, Ollama]]:
    """A gate in front of an Ollama that answers anything; its log is checked at the end. With certificates: in TLS."""
    ollama = Ollama(upstream_cert)
    options = (*(() if fast_path else ("-s", str(NO_FAST_PATH))), *(("--certs", str(cert)) if cert else ()))
    if upstream_cert:
        options += ("--set", f"ssl_verify_upstream_trusted_ca={upstream_cert}")
    with Gate(ollama.url, *options) as gate:
        yield gate, ollama
        assert gate.process.poll() is None, gate.output[-2000:]
        for word in ("Traceback", "crashed", "Addon error", "Unhandled", "the request was denied"):
            assert word not in gate.output, gate.find(word)
    ollama.server.stop()


def run(
    gate: Gate,
    ollama: Ollama,
    examples: int,
    start: int,
    on_example: Callable[[Example], None] | None = None,
    cert: Path | None = None,
) -> None:
    """That many connections, in HTTP/2 with a `cert`. Raises AssertionError with the smallest example that fails."""
    number = 10

    @seed(start)
    @fuzzing(examples, Phase.generate, Phase.shrink)
    @given(EXAMPLES, st.sets(st.integers(0, 9), max_size=2))
    def example(one: Example, cancelled: set[int]) -> None:
        nonlocal number
        first = number = number % 900_000 + 10
        late = {n: reply for n, reply in ollama.replies.items() if n > first - 100}  # Cancelled ones may come late.
        ollama.replies = late | {first + at: reply for at, reply in enumerate(one.replies)}
        if cert:
            check(first, one, converse_http2(gate.port, cert, first, one, cancelled))
        else:
            check(first, one, dict(enumerate(read_responses(*converse(gate.port, first, one)))))
        if on_example:
            on_example(one)

    example()


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the answers of Ollama; see the top of this file.")
    parser.add_argument(
        "--answers",
        type=int,
        default=20_000,
        help="answers in all, a quarter for each way",
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="what makes a run repeatable")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    folder = tempfile.TemporaryDirectory()
    made = certificate(Path(folder.name))
    for fast_path, cert, upstream_cert, what in (
        (True, None, None, "in HTTP/1.1"),
        (False, None, None, "in HTTP/1.1, without the fast path"),
        (True, None, made, "in HTTP/1.1, with TLS to Ollama"),
        (True, made, None, "in HTTP/2"),
    ):
        answered, rounds, began = 0, 0, time.monotonic()

        def count(one: Example) -> None:
            nonlocal answered
            answered += len(one.replies)

        with fuzzed_gate(fast_path=fast_path, cert=cert, upstream_cert=upstream_cert) as (gate, ollama):
            while answered < arguments.answers // 4:
                run(gate, ollama, 1_000, arguments.seed + rounds, count, cert)
                rounds += 1
                rate = answered / (time.monotonic() - began)
                print(f"{answered:>9,} answers, {rate:,.0f} a second", file=sys.stderr, flush=True)
        print(f"{answered:,} answers {what}: all properties hold")
    folder.cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(main())
