"""The fast path gives the client exactly the bytes that it gets through all layers."""

import asyncio
import functools
import itertools
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h2.connection
import h2.events
import h2.exceptions
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.test import taddons
from OpenSSL import SSL

from ollama_auth.auth.keys import Principal
from ollama_auth.exchange import Admission, Exchange, UpstreamRequest
from ollama_auth.http.head import Head
from ollama_auth.http.responses import Answer
from ollama_auth.proxy.client_connection import ClientConnection
from ollama_auth.proxy.fast_path import SocketFastPath
from ollama_auth.proxy.http2_frames import WINDOW_UPDATE, frame
from ollama_auth.proxy.layer import GateLayer
from ollama_auth.proxy.pacer import Pacer
from ollama_auth.proxy.tls import ClientTls
from ollama_auth.proxy.transport import BulkReader
from ollama_auth.settings import UNCONFIGURED, Settings
from tests.harness.base import BEARER
from tests.harness.cases import each_of
from tests.harness.gate import NO_FAST_PATH, Controlled
from tests.harness.http2 import H2
from tests.harness.upstream import Upstream
from tests.harness.wire import TlsWire, Wire, chat, head

REQUEST = b"GET /api/tags HTTP/1.1\r\nHost: gate\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class FakeLifecycle:
    """Lets everything in, and keeps what it was told."""

    settings: Settings = UNCONFIGURED
    draining: bool = False
    most_free: int = 1
    read: list[bytes] = field(default_factory=list)
    events: int = 0
    exchange: Exchange = field(default_factory=lambda: Exchange("127.0.0.1", id="0"))

    def watched(self) -> bool:
        return False

    def request_hooks_idle(self) -> bool:
        return True

    def authorize(self, head: Head, peer: ClientConnection) -> tuple[Exchange, Admission]:
        peer.exchanges[0] = self.exchange
        self.exchange.state.upstream_request = UpstreamRequest(Principal("anna"), b"/api/tags", ())
        self.exchange.usage = self  # type: ignore[assignment] # It is fed what is read.
        return self.exchange, Admission(self.exchange.state.upstream_request)

    def begin(self, exchange: Exchange, flow: object) -> None:
        flow.request.stream = exchange.request_chunk  # type: ignore[attr-defined]

    def refuse_malformed(self, error: object, peer: object) -> Answer:
        return Answer(400, (), b"")

    def response_started(self, exchange: Exchange, flow: object) -> None:
        flow.response.stream = exchange.response_chunk  # type: ignore[attr-defined]

    def rewrite_response(self, exchange: Exchange, flow: object) -> None: ...

    def finish(self, exchange: Exchange, peer: ClientConnection) -> None:
        peer.exchanges.clear()
        exchange.ended = 1.0

    def failed(self, exchange: Exchange, reason: str, status: int) -> Answer:
        exchange.reason = reason
        return Answer(status, (), b"")

    def internal_error(self, error: Exception, exchange: object = None) -> Answer:
        raise error

    def feed(self, data: bytes) -> None:
        self.read.append(data)


class Handler:
    """A ConnectionHandler without sockets."""

    transports: dict[object, object] = {}  # noqa: RUF012


@dataclass
class Seen:
    """What came of one response."""

    client: bytes = b""
    before: int = 0
    """Bytes of these before the client sent more."""
    server: bytes = b""
    sends: int = 0
    closed: bool = False
    server_closed: bool = False
    read: list[bytes] = field(default_factory=list)
    exchange: tuple[object, ...] = ()


@functools.cache
def mitmproxy_options() -> Options:
    """Those of a mitmproxy that proxies; making them takes longer than a response takes through the layers."""
    with taddons.context(Proxyserver()) as tctx:
        options: Options = tctx.options
    return options


def relay(
    pieces: list[bytes],
    *,
    fast: bool,
    cut: bool,
    head: bytes = HEAD,
    request: tuple[bytes, ...] = (REQUEST,),
    http2: bool = False,
    later: bytes = b"",
) -> Seen:
    """Play a request and its response in those pieces through the layers, without sockets.

    The client sends `later` once half of the pieces have come.
    """
    seen, lifecycle = Seen(), FakeLifecycle()
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr("ollama_auth.proxy.fast_path.find_fast_path", lambda *_: None)
        mode = ReverseMode.parse("reverse:http://127.0.0.1:1")
        client = Client(
            peername=("127.0.0.1", 2), sockname=("127.0.0.1", 3), timestamp_start=1.0, state=ConnectionState.OPEN
        )
        client.proxy_mode, client.alpn = mode, b"h2" if http2 else None
        context = Context(client, mitmproxy_options())
        context.server = Server(address=("127.0.0.1", 1))
        layer = GateLayer(context, lifecycle, ClientConnection(client, Handler(), 0.0, Pacer(4, 1)), lifecycle)  # type: ignore[arg-type]
        server: Server | None = None

        def feed(event: events.Event) -> None:
            nonlocal server
            opening, hooks = None, []
            for command in layer.handle_event(event):
                if isinstance(command, commands.OpenConnection):
                    assert isinstance(command.connection, Server)
                    opening, server = command, command.connection
                elif isinstance(command, commands.StartHook):
                    hooks.append(command)
                elif isinstance(command, commands.SendData) and command.connection is client:
                    seen.client += command.data
                    seen.sends += 1
                elif isinstance(command, commands.SendData) and command.connection is server:
                    seen.server += command.data
                elif isinstance(command, commands.CloseConnection):
                    seen.closed |= command.connection is client
                    seen.server_closed |= command.connection is server
            for hook in hooks:
                feed(events.HookCompleted(hook))
            if opening and server:
                server.state = ConnectionState.OPEN
                feed(events.OpenConnectionCompleted(opening, None))

        feed(events.Start())
        for piece in request:
            if not seen.closed:
                feed(events.DataReceived(client, piece))
        assert server
        for number, piece in enumerate([head, *pieces]):
            if not seen.server_closed:
                feed(events.DataReceived(server, piece))
            if later and number == len(pieces) // 2:
                seen.before = len(seen.client)
                feed(events.DataReceived(client, later))
        if cut and not seen.server_closed:
            server.state &= ~ConnectionState.CAN_READ
            feed(events.ConnectionClosed(server))
    seen.read = lifecycle.read
    seen.exchange = (
        lifecycle.exchange.bytes_in,
        lifecycle.exchange.bytes_out,
        lifecycle.exchange.reason,
        lifecycle.exchange.ended,
    )
    return seen


def chunk(content: bytes, form: str = "%x\r\n%s\r\n") -> bytes:
    return form.encode() % (len(content), content)


FORMS = ["%x\r\n%s\r\n"] * 6 + [
    "%X\r\n%s\r\n",
    "0%x\r\n%s\r\n",
    "%x;a=b\r\n%s\r\n",
    "%x \r\n%s\r\n",
    "0000000000%x\r\n%s\r\n",
]
BROKEN = [
    b"x\r\n",
    b"-1\r\na\r\n",
    b"\r\n",
    b"3\nabc\r\n",
    b"2\r\nabc\r\n",
    b"3\r\nab\r\n\r\n",
    b"ffffffffffffffffffffffff\r\n",
]
CHUNKS = st.builds(
    chunk, st.binary(min_size=1, max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n"]), st.sampled_from(FORMS)
)
ENDS = st.sampled_from(
    [b"0\r\n\r\n"] * 4 + [b"", b"0\r\nX-A: b\r\n\r\n", b"00\r\n\r\n", b"0\r\n", b"0;x\r\n\r\n", *BROKEN]
)


@given(st.lists(CHUNKS, max_size=6), ENDS, st.lists(st.integers(0, 200), max_size=5), st.booleans())
@settings(max_examples=200)
def test_the_same_bytes_at_any_split(body: list[bytes], end: bytes, splits: list[int], cut: bool) -> None:
    """Whole, broken, cut off, with trailers, with extensions: to the client, to who reads it, and to the log."""
    raw = b"".join(body) + end
    for whole in (split_at(raw, splits), [*body, end] if end else body):
        assert joined(relay(whole, fast=True, cut=cut)) == joined(relay(whole, fast=False, cut=cut))


def joined(seen: Seen) -> tuple[object, ...]:
    """With the chunks of both bodies joined: those that come together may go on as one."""
    bodies = joined_chunks(seen.client), joined_chunks(seen.server), b"".join(seen.read)
    return *bodies, replace(seen, client=b"", server=b"", read=[], sends=0)


def joined_chunks(message: bytes) -> tuple[bytes, bytes, bytes]:
    """(head, content of whole chunks, what follows them)"""
    head, _, rest = message.partition(b"\r\n\r\n")
    content = b""
    while found := re.match(rb"([1-9a-f][0-9a-f]*)\r\n", rest):
        end = found.end() + int(found[1], 16)
        if rest[end : end + 2] != b"\r\n":
            break
        content, rest = content + rest[found.end() : end], rest[end + 2 :]
    return head, content, rest


def split_at(raw: bytes, splits: list[int]) -> list[bytes]:
    at = sorted({0, len(raw), *(split % (len(raw) + 1) for split in splits)})
    return [raw[one:other] for one, other in itertools.pairwise(at)]


SPLITS = st.lists(st.integers(0, 60), max_size=4)


@given(st.binary(max_size=40), st.integers(0, 45), SPLITS, st.booleans())
def test_a_response_of_known_length(body: bytes, length: int, splits: list[int], cut: bool) -> None:
    """Also one that is longer or shorter than it says."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length
    ways = [relay(split_at(body, splits), fast=way, cut=cut, head=head) for way in (True, False)]
    assert ways[0] == ways[1]


@given(
    st.lists(CHUNKS, max_size=6), ENDS, st.lists(st.integers(0, 200), max_size=5), st.booleans(), st.integers(0, 100)
)
def test_the_same_over_http2(body: list[bytes], end: bytes, splits: list[int], cut: bool, window: int) -> None:
    """Also where the client has room for a part of it only, and makes more of it later."""
    pieces = split_at(b"".join(body) + end, splits)
    assert over_http2(pieces, window, fast=True, cut=cut) == over_http2(pieces, window, fast=False, cut=cut)


@given(st.binary(max_size=40), st.integers(0, 45), SPLITS, st.booleans(), st.integers(0, 50))
def test_a_response_of_known_length_over_http2(
    body: bytes, length: int, splits: list[int], cut: bool, window: int
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length
    ways = [over_http2(split_at(body, splits), window, fast=way, cut=cut, head=head) for way in (True, False)]
    assert ways[0] == ways[1]


def over_http2(pieces: list[bytes], window: int, **how: Any) -> tuple[object, ...]:
    """What a client of HTTP/2 with so much room makes of a response; h2 raises if more is sent than it has room for."""
    client = h2.connection.H2Connection()
    client.local_settings.initial_window_size = window
    client.local_settings.acknowledge()
    client.initiate_connection()
    head = {":method": "GET", ":scheme": "https", ":authority": "gate", ":path": "/api/tags"}
    client.send_headers(1, list(head.items()), end_stream=True)
    request = client.data_to_send()
    room = frame(WINDOW_UPDATE, 0, 1, (1000).to_bytes(4)) + frame(WINDOW_UPDATE, 0, 0, (200_000).to_bytes(4))
    seen = relay(pieces, request=(request,), http2=True, later=room, **how)
    got = client.receive_data(seen.client[: seen.before])
    with suppress(h2.exceptions.StreamClosedError):
        client.increment_flow_control_window(1000, 1)
    client.increment_flow_control_window(200_000)
    got += client.receive_data(seen.client[seen.before :])
    content = b"".join(one.data for one in got if isinstance(one, h2.events.DataReceived))
    kinds = [type(one) for one in got if not isinstance(one, h2.events.DataReceived)]
    return content, kinds, b"".join(seen.read), seen.closed, seen.server_closed, seen.exchange


def test_a_frame_is_no_longer_than_the_room_for_it() -> None:
    """What is more goes through the layers, which keep it; for all streams together there is room for 65,535 bytes."""
    for size, window in ((60, 100), (15_000, 1_000_000)):
        contents = [letter.encode() * size for letter in "abcdefghijkl"]
        pieces = [*map(chunk, contents), b"0\r\n\r\n"]
        assert over_http2(pieces, window, fast=True, cut=False)[0] == b"".join(contents)


@given(st.binary(max_size=40), st.integers(0, 45), SPLITS, st.booleans())
def test_a_request_of_known_length(body: bytes, length: int, splits: list[int], expect: bool) -> None:
    """The same bytes go upstream; what follows the body is a request of its own."""
    wait = b"Expect: 100-continue\r\n" if expect else b""
    head = b"POST /api/chat HTTP/1.1\r\nHost: gate\r\n%sContent-Length: %d\r\n\r\n" % (wait, length or 1)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    request = (head, *split_at(body[: length or 1], splits))
    ways = [relay([b"o", b"k"], fast=way, cut=False, head=answer, request=request) for way in (True, False)]
    assert ways[0] == ways[1]
    assert ways[0].exchange[0] == len(body[: length or 1])


@given(st.lists(CHUNKS, max_size=4), ENDS, SPLITS)
def test_a_request_in_chunks(body: list[bytes], end: bytes, splits: list[int]) -> None:
    head = b"POST /api/chat HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    request = (head, *split_at(b"".join(body) + end, splits))
    ways = [relay([b"ok"], fast=way, cut=False, head=answer, request=request) for way in (True, False)]
    assert joined(ways[0]) == joined(ways[1])


def test_it_is_the_fast_path() -> None:
    """Three chunks at once are one send, and keep their framing; the slow way makes one chunk of them."""
    three = [chunk(b"a") + chunk(b"b" * 20) + chunk(b"c")]
    fast, slow = (relay([*three, b"0\r\n\r\n"], fast=way, cut=False) for way in (True, False))
    assert (fast.sends, slow.sends) == (3, 3)
    assert fast.read == slow.read == [b"a" + b"b" * 20 + b"c"]
    assert fast.client.endswith(three[0] + b"0\r\n\r\n")
    assert slow.client.endswith(chunk(b"a" + b"b" * 20 + b"c") + b"0\r\n\r\n")


@each_of("end", BROKEN)
def test_no_clean_end_of_a_broken_body(end: bytes) -> None:
    seen = relay([chunk(b"a"), end], fast=True, cut=True)
    assert seen.closed
    assert not seen.client.endswith(b"0\r\n\r\n")
    assert seen.exchange[2] == "upstream broken"


def test_who_reads_it_may_raise() -> None:
    """Then the request ends as it does the slow path: see GateLayer._crash."""

    class Fault(Exception):
        pass

    def raise_it(self: FakeLifecycle, data: bytes) -> None:
        raise Fault

    for way in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeLifecycle, "feed", raise_it)
            with pytest.raises(Fault):
                relay([chunk(b"a")], fast=way, cut=False)


async def test_what_the_fast_path_takes_is_not_read() -> None:
    """Only while the reader waits and holds nothing: what came before goes first."""
    reader, taken = BulkReader(), []

    def forward(data: bytes) -> int:
        taken.append(data)
        return 3

    reader.fast_path = forward
    reader.feed_data(b"0")  # Nobody waits yet.
    assert await reader.read(100) == b"0"
    waiting = asyncio.create_task(reader.read(100))
    await asyncio.sleep(0)
    reader.feed_data(b"abc")
    assert not waiting.done()
    reader.feed_data(b"defg")
    reader.feed_data(b"hij")  # It has been woken: this follows what it was woken for.
    assert await waiting == b"ghij"
    assert taken == [b"abc", b"defg"]
    waiting = asyncio.create_task(reader.read(100))
    await asyncio.sleep(0)
    waiting.cancel()
    reader.feed_data(b"klm")  # It is about to end.
    assert taken == [b"abc", b"defg"]


@dataclass
class Ends:
    """All that a SocketFastPath depends on: idle layers, an open LayerFastPath, and the socket of a client."""

    event_count: int = 0
    deferred_error: Exception | None = None
    paused: bool = False
    closed: bool = False
    opens: bool = True
    closing: bool = False
    waiting: int = 0
    looked: int = 0
    late: bytes = b""
    drains: int = 0
    tls: object = None
    handler: object = field(default_factory=lambda: SimpleNamespace(timeout_watchdog=SimpleNamespace(last_activity=0)))
    sockets: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)

    def __post_init__(self) -> None:
        self.source = SimpleNamespace(conn=None)
        self.sockets[0].setblocking(False)

    @property
    def by_source(self) -> "Ends":
        return self

    def get(self, source: object) -> object:
        return self

    @property
    def open(self) -> bool:
        self.looked += 1
        return self.opens

    def take(self, data: bytes) -> tuple[int, bytes]:
        taken = len(data) - data.count(b"-")
        return taken, data[:taken]

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def get_extra_info(self, name: str) -> socket.socket:
        return self.sockets[0]

    def write(self, data: bytes) -> None:
        self.late += data

    def close(self) -> None:
        self.closing = True

    def drain_first(self) -> None:
        self.drains += 1

    @property
    def forward(self) -> SocketFastPath:
        return SocketFastPath(self, self, self, self, self, self.tls)  # type: ignore[arg-type]

    def sent(self) -> bytes:
        return self.sockets[1].recv(1 << 20, socket.MSG_DONTWAIT)


@pytest.fixture
def ends() -> Iterator[Ends]:
    found = Ends()
    yield found
    for one in found.sockets:
        one.close()


def test_what_is_forwarded_goes_at_once(ends: Ends) -> None:
    forward = ends.forward
    assert forward(b"abc--") == 3
    assert ends.sent() == b"abc"
    assert forward(b"de") == 2
    assert (ends.looked, ends.late) == (1, b"")
    ends.event_count += 1
    assert forward(b"f") == 1
    assert ends.looked == 2


@pytest.mark.parametrize("why", ["paused", "closed", "closing", "waiting", "deferred_error"])
def test_what_is_not_forwarded(ends: Ends, why: str) -> None:
    """Also where it was open before, and whatever is looked at once an event changes with an event."""
    forward = ends.forward
    assert forward(b"a") == 1
    setattr(ends, why, 1)
    ends.event_count += 1
    assert forward(b"b") == 0
    assert (ends.sent(), ends.late) == (b"a", b"")


def test_a_closed_fast_path_is_looked_at_again(ends: Ends) -> None:
    ends.opens = False
    forward = ends.forward
    assert (forward(b"a"), forward(b"a")) == (0, 0)
    ends.opens = True
    assert forward(b"b") == 1
    assert ends.sent() == b"b"


def test_a_client_that_is_slow_gets_the_rest_from_its_transport(ends: Ends) -> None:
    whole = bytes(range(256)) * 16384  # more than a socket holds
    whole = whole.replace(b"-", b"+")
    assert ends.forward(whole) == len(whole)
    got = bytearray()
    with suppress(BlockingIOError):
        while True:
            got += ends.sent()
    assert 0 < len(got) < len(whole)
    assert bytes(got) + ends.late == whole
    assert ends.drains == 1


def test_a_client_that_is_gone_is_left_to_its_transport(ends: Ends) -> None:
    ends.sockets[1].close()
    assert ends.forward(b"abc") == 3
    assert ends.late == b"abc"


def test_with_tls_it_is_encrypted(ends: Ends) -> None:
    ends.tls = tls = SimpleNamespace(sends=True, encrypt=bytes.upper)
    assert ends.forward(b"abc-") == 3
    assert ends.sent() == b"ABC"
    tls.sends = False
    assert ends.forward(b"abc") == 0
    tls.sends, tls.encrypt = True, lambda _: b""  # The client has broken it.
    assert ends.forward(b"abc") == 3
    assert ends.closing


def test_what_is_encrypted_is_what_the_layer_sends() -> None:
    """In several records, with what OpenSSL had still to send; after an error nothing."""
    for size in (1, 4096 - 22, 4096, 16 * 1024, 300_000):
        encrypts, client = ClientTls.__new__(ClientTls), SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([])
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(1)).sign(key, SHA256())
        context.use_privatekey(key)
        context.use_certificate(made)
        encrypts.tls = SSL.Connection(context)
        encrypts.tls.set_accept_state()
        client.set_connect_state()
        for one, other in ((client, encrypts.tls), (encrypts.tls, client)) * 2:
            with suppress(SSL.WantReadError):
                one.do_handshake()
            with suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(65535))
        client.do_handshake()
        encrypts.tls.do_handshake()
        client.bio_write(encrypts.encrypt(bytes(size)))
        got = b""
        while len(got) < size:
            got += client.recv(65535)
        assert got == bytes(size)
        with pytest.raises(SSL.WantReadError):
            encrypts.tls.bio_read(1)
        encrypts.tls.shutdown()
        assert encrypts.encrypt(b"a") == b""


WAYS = [("", True), ("", False), ("http/1.1", True), ("h2", True), ("h2", False)]


@pytest.mark.parametrize(("alpn", "fast"), WAYS)
def test_tokens_take_the_fast_path(upstream: Upstream, cert: Path, alpn: str, fast: bool) -> None:
    count = """
        from ollama_auth.proxy.fast_path import SocketFastPath
        plain, taken = SocketFastPath.__call__, []
        def counting(*args):
            taken.append(plain(*args))
            return taken[-1]
        SocketFastPath.__call__ = counting
        ctx.taken = taken
    """
    tls = ("--certs", str(cert)) if alpn else ()
    with Controlled(upstream.url, *tls, *(() if fast else ("-s", str(NO_FAST_PATH)))) as controlled:
        controlled.do(count)
        upstream.hold()
        body = chat()
        if alpn == "h2":
            with H2(controlled.port, cert) as client:
                stream = client.request("POST", "/api/chat", body=body)
                client.until(h2.events.DataReceived)
                upstream.go_on()
                assert b'"done":true' in client.body(stream)
        else:
            request = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body
            with TlsWire(controlled.port, cert, request, alpn) if alpn else Wire(controlled.port, request) as wire:
                wire.read_until(b'"done":false}')
                upstream.go_on()
                wire.read_until(b"0\r\n\r\n")
        assert controlled.do("result = any(ctx.taken)") == str(fast)


def test_an_error_on_the_fast_path_ends_the_answer(upstream: Upstream) -> None:
    """Visibly, and in the log; see SocketFastPath."""
    fault = """
        from ollama_auth.proxy.fast_path import LayerFastPath
        def broken(self, data):
            raise ValueError("on purpose")
        LayerFastPath.take = broken
    """
    with Controlled(upstream.url) as controlled:
        controlled.do(fault)
        upstream.hold()
        body = chat()
        with Wire(controlled.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body) as wire:
            wire.read_until(b'"done":false}')
            upstream.go_on()
            assert not wire.read_all().endswith(b"0\r\n\r\n")
        assert "ValueError at" in controlled.find("the request was denied")
        assert "on purpose" not in controlled.output
