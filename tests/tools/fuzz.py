"""A fuzzer of the gate over raw sockets, with one property: the upstream never sees a request without the key.

    PYTHONPATH=addons:. .venv/bin/python -m tests.tools.fuzz --requests 1000000 --seed 1

starts a gate and a stand-in of its own on the loopback, and shows progress. Each example is one connection with some
requests on it, mutated, cut at any byte. What carries no valid key says "stranger" in its target.
"""

import argparse
import secrets
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import h2.config
import h2.connection
import hyperframe.frame as frames
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.harness.base import BEARER, KEY
from tests.harness.certificates import certificate
from tests.harness.gate import Gate
from tests.harness.upstream import Upstream

STRANGERS_TARGET = "/api/stranger"
CREDENTIALS = st.sampled_from([
    "",
    "Authorization: Bearer",
    "Authorization: Bearer wrong",
    f"Authorization: Bearer {KEY[:-1]}",
    f"Authorization: Bearer {KEY}, Bearer {KEY}",
    f"Authorization : Bearer {KEY}",
    f" Authorization: Bearer {KEY}",
    f"X-A: 1\n{BEARER}",
    f"X-A: 1\r{BEARER}",
    f"{BEARER}\r\n{BEARER}",
    f"{BEARER}\r\nx-api-key: no",
    f"Authorization: Bearer\r\n {KEY}",
    f"Authorization:\x00Bearer {KEY}",
    f"Proxy-Authorization: Bearer {KEY}",
    f"Cookie: {BEARER}",
    "x-api-key: \xff\xfe",
])  # fmt: skip
FRAMINGS = st.sampled_from([
    "",
    "Content-Length: 0",
    "Content-Length: 5",
    "Content-Length: 5\r\nContent-Length: 6",
    "Content-Length: +5",
    "Content-Length: 5, 5",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding:\x0bchunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Expect: 100-continue\r\nContent-Length: 5",
    "Connection: close",
    "Connection: Authorization",
    "Upgrade: websocket\r\nConnection: Upgrade",
])  # fmt: skip
METHODS = st.sampled_from(["GET", "POST", "HEAD", "DELETE", "OPTIONS", "CONNECT", "TRACE", "get", "G\x00T", "", "PRI"])
VERSIONS = st.sampled_from(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", "http/1.1", "", "HTTP/1.11"])
TARGETS = st.sampled_from([
    STRANGERS_TARGET,
    f"http://127.0.0.1{STRANGERS_TARGET}",
    f"{STRANGERS_TARGET}?key={KEY}",
    f"//x{STRANGERS_TARGET}",
    f"{STRANGERS_TARGET}#",
    f"{STRANGERS_TARGET}\t",
    f"*{STRANGERS_TARGET}",
])  # fmt: skip
BODIES = st.sampled_from([
    "",
    "hello",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;ext=1\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
    "0\r\n\r\n",
    "ffffffffffffffffffff\r\n",
    "5\nhello\n0\n\n",
    f"GET {STRANGERS_TARGET} HTTP/1.1\r\nHost: x\r\n\r\n",
    f"0\r\n\r\nGET {STRANGERS_TARGET} HTTP/1.1\r\nHost: x\r\n\r\n",
])  # fmt: skip


@st.composite
def strangers(draw: st.DrawFn) -> bytes:
    """A request without a valid key, well-formed or not."""
    line = " ".join((draw(METHODS), draw(TARGETS), draw(VERSIONS)))
    fields = [
        field for field in (draw(st.sampled_from(["Host: x", "", "Host: x\r\nHost: y"])), draw(CREDENTIALS)) if field
    ]
    fields += draw(st.lists(FRAMINGS.filter(bool), max_size=2))
    ending = draw(st.sampled_from(["\r\n"] * 6 + ["\n", "\r"]))
    return (ending.join([line, *fields, "", ""]) + draw(BODIES)).encode("latin-1")


@st.composite
def keyed(draw: st.DrawFn) -> bytes:
    """A well-formed request with the key, and perhaps a body that looks like another request."""
    body = draw(st.sampled_from(["", "hello", f"GET {STRANGERS_TARGET} HTTP/1.1\r\nHost: x\r\n\r\n"]))
    framing = f"Content-Length: {len(body)}"
    if draw(st.booleans()):
        framing = "Transfer-Encoding: chunked"
        body = (f"{len(body):x}\r\n{body}\r\n" if body else "") + "0\r\n\r\n"
    return f"POST /demo/sink HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n{framing}\r\n\r\n{body}".encode("latin-1")


@st.composite
def noise(draw: st.DrawFn) -> bytes:
    """A stranger's request with bytes changed, or bytes of any kind. It may hold the key, but in no request of ours."""
    raw = bytearray(draw(strangers()).replace(KEY.encode(), b"k" * len(KEY)))
    for position, byte in draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4)):
        if position < len(raw):
            raw[position] = byte
    return bytes(raw) + draw(st.binary(max_size=20))


@dataclass(frozen=True)
class Conversation:
    """Requests on one connection, and where they are cut into packets."""

    requests: tuple[bytes, ...]
    cuts: tuple[int, ...]

    @property
    def packets(self) -> Iterator[bytes]:
        data, start = b"".join(self.requests), 0
        for cut in sorted(self.cuts):
            yield data[start : cut % (len(data) + 1)]
            start = max(start, cut % (len(data) + 1))
        yield data[start:]


CONVERSATIONS = st.builds(
    Conversation,
    st.lists(st.one_of(strangers(), strangers(), noise(), keyed()), min_size=1, max_size=5).map(tuple),
    st.lists(st.integers(0, 2000), max_size=3).map(lambda cuts: tuple(sorted(cuts))),
)


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield peer


def converse(port: int, conversation: Conversation) -> None:
    """Send it all, say that this was all, and read to the end, which must come."""
    with connected(port) as peer:
        for packet in conversation.packets:
            if packet:
                peer.sendall(packet)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass


FRAMES = st.one_of(
    st.builds(
        lambda n, d, end: frames.DataFrame(n or 1, d, flags=["END_STREAM"] if end else []),
        st.integers(0, 9),
        st.binary(max_size=50),
        st.booleans(),
    ),
    st.builds(lambda n, c: frames.RstStreamFrame(n or 1, c), st.integers(0, 9), st.integers(0, 14)),
    st.builds(lambda n, i: frames.WindowUpdateFrame(n, i or 1), st.integers(0, 9), st.integers(0, 2**31 - 1)),
    st.builds(lambda d: frames.PingFrame(0, d), st.binary(min_size=8, max_size=8)),
    st.builds(lambda n, d: frames.ContinuationFrame(n or 1, d), st.integers(0, 9), st.binary(max_size=50)),
    st.builds(
        lambda n, d, f: frames.HeadersFrame(n or 1, d, flags=f),
        st.integers(0, 9),
        st.binary(max_size=50),
        st.lists(st.sampled_from(["END_HEADERS", "END_STREAM"]), unique=True),
    ),
)


STRANGERS_PATHS = st.sampled_from([STRANGERS_TARGET, f"{STRANGERS_TARGET} x", f"{STRANGERS_TARGET}\n", ""])
SMUGGLED = f"0\r\n\r\nGET {STRANGERS_TARGET} HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n\r\n".encode()


@st.composite
def http2(draw: st.DrawFn) -> list[bytes]:
    """Packets of an HTTP/2 connection, all of it with or without the key: good heads, and frames of any kind.

    With the key each request is for one path, and its body may look like another request.
    """
    has_key = draw(st.booleans())
    ours = h2.connection.H2Connection(
        h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    )
    ours.initiate_connection()
    packets = [ours.data_to_send()]
    for _ in range(draw(st.integers(1, 4))):
        fields = [
            (":method", draw(st.sampled_from(["GET", "POST", "CONNECT"]))),
            (":scheme", draw(st.sampled_from(["https", "http"]))),
            (":authority", "localhost"),
            (":path", "/demo/sink" if has_key else draw(STRANGERS_PATHS)),
            *([("authorization", f"Bearer {KEY}")] if has_key else []),
            *draw(
                st.lists(
                    st.sampled_from(
                        [
                            ("authorization", "Bearer wrong"),
                            ("Authorization", f"Bearer {KEY}"),
                            ("authorization", f"Bearer {KEY}\r\nx: y"),
                            ("transfer-encoding", "chunked"),
                            ("content-length", "5"),
                            ("content-length", "x"),
                            ("connection", "close"),
                            (":path", STRANGERS_TARGET),
                            ("te", "gzip"),
                        ]
                    ),
                    max_size=3,
                )
            ),
        ]
        stream = ours.get_next_available_stream_id()
        with suppress(Exception):
            ours.send_headers(stream, fields, end_stream=draw(st.booleans()))
        if has_key and draw(st.booleans()):
            with suppress(Exception):
                ours.send_data(stream, SMUGGLED, end_stream=draw(st.booleans()))
        packets.append(ours.data_to_send())
        packets += [frame.serialize() for frame in draw(st.lists(FRAMES, max_size=3))]
    return packets


TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TLS.check_hostname, TLS.verify_mode = False, ssl.CERT_NONE
TLS.set_alpn_protocols(["h2"])


def converse_http2(port: int, packets: list[bytes]) -> None:
    with suppress(ssl.SSLError), connected(port) as peer, TLS.wrap_socket(peer) as channel:
        for packet in packets:
            channel.sendall(packet)
        channel.settimeout(0.02)
        with suppress(TimeoutError):
            while channel.recv(65536):
                pass


class Watch:
    """What must hold after every example."""

    def __init__(self, gate: Gate, upstream: Upstream) -> None:
        self.gate, self.upstream = gate, upstream
        self.read = 0

    def check(self) -> None:
        for seen in self.upstream.requests:
            assert "stranger" not in seen.target, seen
            assert not {name.lower() for name, _ in seen.headers} & {"authorization", "x-api-key"}, seen
        self.upstream.demo.requests.clear()

    def check_log(self) -> None:
        assert self.gate.process.poll() is None, self.gate.output[-2000:]
        with Path(self.gate.dir.name, "out").open() as log:
            log.seek(self.read)
            for line in log:
                for word in ("Traceback", "crashed", "Addon error", "Unhandled", "Error at", KEY):
                    assert word not in line, line
            self.read = log.tell()


def fuzzing(examples: int, *phases: Phase) -> settings:
    """Settings of hypothesis for a run of so many examples."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


def run(
    gate: Gate, upstream: Upstream, examples: int, start: int, on_example: Callable[[Conversation], None] | None = None
) -> None:
    """That many HTTP/1 connections. Raises AssertionError with the smallest conversation that breaks the property."""
    watch = Watch(gate, upstream)

    @seed(start)
    @fuzzing(examples, Phase.generate, Phase.shrink)
    @given(CONVERSATIONS)
    def example(conversation: Conversation) -> None:
        converse(gate.port, conversation)
        watch.check()
        if on_example:
            on_example(conversation)

    example()
    watch.check_log()


def run_http2(gate: Gate, upstream: Upstream, examples: int, start: int) -> None:
    """That many HTTP/2 connections; the gate must have a certificate."""
    watch = Watch(gate, upstream)

    @seed(start)
    @fuzzing(examples, Phase.generate)
    @given(http2())
    def example(packets: list[bytes]) -> None:
        converse_http2(gate.port, packets)
        watch.check()

    example()
    watch.check_log()


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the gate over the loopback; see the top of this file.")
    parser.add_argument("--requests", type=int, default=1_000_000, help="HTTP/1 requests in all")
    parser.add_argument("--http2", type=int, default=20_000, help="HTTP/2 connections in all")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="what makes a run repeatable")
    arguments = parser.parse_args()
    upstream, sent, began, rounds = Upstream(), 0, time.monotonic(), 0

    def count(conversation: Conversation) -> None:
        nonlocal sent
        sent += len(conversation.requests)

    print(f"seed {arguments.seed}", flush=True)
    with Gate(upstream.url) as gate:
        while sent < arguments.requests:
            run(gate, upstream, 5_000, arguments.seed + rounds, count)
            rounds += 1
            rate = sent / (time.monotonic() - began)
            left = max(0, arguments.requests - sent) / rate
            print(
                f"{sent:>9,} requests, {rate:,.0f} a second, {left / 60:.0f} min left, "
                f"gate at {gate.rss / 2**20:.0f} MiB",
                file=sys.stderr,
                flush=True,
            )
    with (
        tempfile.TemporaryDirectory() as folder,
        Gate(upstream.url, "--certs", str(certificate(Path(folder)))) as gate,
    ):
        for number in range(0, arguments.http2, 2_000):
            run_http2(gate, upstream, min(2_000, arguments.http2 - number), arguments.seed + number)
            print(f"{number:>9,} HTTP/2 connections, gate at {gate.rss / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    upstream.stop()
    print(f"{sent:,} HTTP/1 requests and {arguments.http2:,} HTTP/2 connections: nothing went upstream without the key")
    return 0


if __name__ == "__main__":
    sys.exit(main())
