"""Refusals before mitmproxy: the same bytes as later, the same bounds, and everything else goes on to mitmproxy."""

import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from tests.harness.base import BEARER, wait_until
from tests.harness.certificates import certificate, trusting
from tests.harness.gate import Controlled, Gate, logged
from tests.harness.upstream import Upstream
from tests.harness.wire import Line, Wire, ask, assert_gone, head, parse, wires

pytestmark = pytest.mark.ways

HANDLERS = """
from mitmproxy.proxy.server import ConnectionHandler
ConnectionHandler.made = 0
original = ConnectionHandler.handle_client
def counted(self):
    ConnectionHandler.made += 1
    return original(self)
ConnectionHandler.handle_client = counted
"""
MADE = "from mitmproxy.proxy.server import ConnectionHandler\nresult = ConnectionHandler.made"
STRANGERS = {
    "no key": head("GET", "/api/tags"),
    "a wrong key": head("GET", "/api/tags", "Authorization: Bearer nobody-has-this-key"),
    "another field": head("POST", "/v1/messages", "x-api-key: nobody-has-this-key", "Content-Length: 0"),
    "two keys": head("GET", "/v1/models", BEARER, "x-api-key: nobody-has-this-key"),
    "twice": head("GET", "/api/tags", BEARER, BEARER.replace("Bearer ", "Bearer x")),
    "not a key": head("GET", "/api/tags", "Authorization: Digest x"),
    "a browser": head("GET", "/", "Accept: text/html", "Sec-Fetch-Mode: navigate", "Origin: http://evil.example"),
    "its own id": head("GET", "/api/tags", "X-Request-Id: mine-1"),
    "HEAD": head("HEAD", "/api/tags"),
    "an upgrade": head("GET", "/v1/responses", "Upgrade: websocket", "Connection: Upgrade"),
    "an unknown method": head("BREW", "/api/tags"),
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
    "another host": head("GET", "http://example.com/api/tags"),
    "asterisk": head("GET", "*"),
    "HTTP/1.0": b"GET /api/tags HTTP/1.0\r\n\r\n",
    "kept alive": head("GET", "/api/tags", "Connection: keep-alive"),
    "empty lines before": b"\r\n\r\n" + head("GET", "/api/tags"),
}
CHANGING = ("time", "id", "duration_ms")
OTHERS = {
    "the key": (head("GET", "/api/version", BEARER, "Connection: close"), 200),
    "a body": (head("POST", "/api/chat", "Content-Length: 2") + b"{}", 401),
    "a second request": (head("GET", "/api/tags") * 2, 401),
    "a preflight": (head("OPTIONS", "/api/tags", "Origin: http://a", "Access-Control-Request-Method: GET"), 401),
    "malformed": (b"GET /api/tags\r\n\r\n", 400),
    "too long": (head("GET", "/" + "a" * 9000), 414),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
}


@pytest.fixture(scope="module")
def gate(shared_upstream: Upstream) -> Iterator[Controlled]:
    with Controlled(shared_upstream.url, "--set", "ollama_access_log=-", "--set", "ollama_head_timeout=2") as gate:
        gate.do(HANDLERS)
        yield gate


def answer(gate: Gate, request: bytes) -> bytes:
    """What comes back, but for what is chosen at random."""
    with Wire(gate.port, request) as wire:
        return re.sub(rb"(?i)(Request-Id: )[0-9a-f]{16}\r\n", rb"\1?\r\n", wire.read_all())


def made(gate: Controlled) -> int:
    """How many connections mitmproxy has seen."""
    return int(gate.do(MADE))


def test_the_same_bytes_without_mitmproxy(gate: Controlled, upstream: Upstream) -> None:
    """A byte more than the head sends the same request the long way."""
    before = made(gate)
    with upstream.untouched(), logged(gate, 2 * len(STRANGERS)) as lines:
        early = {kind: answer(gate, request) for kind, request in STRANGERS.items()}
        assert made(gate) == before
        late = {kind: answer(gate, request + b"G") for kind, request in STRANGERS.items()}
        assert made(gate) == before + len(STRANGERS)
    assert early == late
    for kind, received in early.items():
        assert 400 <= parse(received, head=kind == "HEAD").status < 500, kind
    shown = [{name: value for name, value in line.items() if name not in CHANGING} for line in lines]
    assert shown[: len(STRANGERS)] == shown[len(STRANGERS) :]


def test_all_else_goes_on_to_mitmproxy(gate: Controlled) -> None:
    before = made(gate)
    for kind, (request, status) in OTHERS.items():
        with Wire(gate.port, request) as wire:
            assert parse(wire.read_until(b"\r\n\r\n")).status == status, kind
    assert made(gate) == before + len(OTHERS)


def test_a_head_in_pieces(gate: Controlled, upstream: Upstream) -> None:
    before = made(gate)
    with upstream.untouched(), Wire(gate.port) as wire:
        for byte in head("GET", "/api/tags"):
            wire.send(bytes([byte]))
        assert parse(wire.read_all()).status == 401
        assert made(gate) == before
    with Wire(gate.port) as wire:
        for byte in head("GET", "/api/version", BEARER):
            wire.send(bytes([byte]))
        assert wire.read_response().status == 200


@pytest.mark.slow
def test_a_head_that_does_not_end(gate: Controlled, upstream: Upstream) -> None:
    """Neither does the first piece of one, nor nothing: mitmproxy has none of them."""
    before = made(gate)
    with upstream.untouched(), logged(gate) as lines, wires(gate.port, 3) as silent, Wire(gate.port, b"GET /") as begun:
        assert parse(begun.read_all()).status == 408
        assert_gone(*silent)
    assert [line["reason"] for line in lines] == ["malformed"]
    assert made(gate) == before


def test_who_stops_sending(gate: Controlled) -> None:
    before = made(gate)
    with Wire(gate.port, b"GET / HT") as wire:
        wire.socket.shutdown(1)
        assert wire.read_all() == b""
    assert made(gate) == before


def test_an_exception_denies(gate: Controlled, upstream: Upstream) -> None:
    gate.do("g = ctx.master.addons.get('ollama_gate'); g.lifecycle.refuse_stranger = lambda *_: 1 / 0")
    try:
        with upstream.untouched():
            assert ask(gate.port, "GET", "/api/tags", BEARER).status == 503
    finally:
        gate.do("del ctx.master.addons.get('ollama_gate').lifecycle.refuse_stranger")
    assert gate.find("ZeroDivisionError")
    assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200


def test_who_wants_to_see_connections_sees_all(gate: Controlled, upstream: Upstream) -> None:
    seen = "class Seen:\n    def client_connected(self, client): pass\nctx.master.addons.add(Seen())"
    before = made(gate)
    gate.do(seen)
    try:
        with upstream.untouched():
            assert ask(gate.port, "GET", "/api/tags").status == 401
        assert made(gate) == before + 1
    finally:
        gate.do("ctx.master.addons.remove(ctx.master.addons.get('seen'))")


def test_the_end_of_the_gate_waits_for_no_stranger(shared_upstream: Upstream) -> None:
    with Gate(shared_upstream.url) as gate, wires(gate.port, 20) as silent, Wire(gate.port, b"GET /api") as begun:
        assert ask(gate.port, "GET", "/api/tags").status == 401
        gate.signal(signal.SIGTERM)
        assert gate.wait() == 0
        assert_gone(*silent)
        assert begun.read_all() == b""


def test_they_count_among_all_connections(shared_upstream: Upstream) -> None:
    """They make room for others, the oldest first; one with a running request keeps its place."""
    with Gate(shared_upstream.url, "--set", "ollama_max_connections=4") as gate:
        with wires(gate.port, 4) as silent:
            assert ask(gate.port, "GET", "/api/version", BEARER).status == 200
            assert_gone(silent[0])
        wait_until(lambda: "were closed to make room" in gate.output, "a warning")


NOTED = """
import asyncio
from mitmproxy.proxy.server import ConnectionHandler
from ollama_auth.proxy import pacer
pacer.SECONDS = 10**9
ctx.turn, ctx.begun, before, loop = 0, [], ConnectionHandler.handle_client, asyncio.get_running_loop()
def turn():
    ctx.turn += 1
    loop.call_soon(turn)
def noted(self):
    ctx.begun.append(ctx.turn)
    return before(self)
ConnectionHandler.handle_client = noted
lifecycle = ctx.master.addons.get("ollama_gate").lifecycle
plain = lifecycle.authorize
def authorize(head, peer):
    if peer.admitted:
        ctx.begun.append(ctx.turn)
    return plain(head, peer)
lifecycle.authorize = authorize
turn()
"""
QUEUE = """
from ollama_auth.proxy import listener, pacer
gate = ctx.master.addons.get("ollama_gate")
connections, requests = gate.listener.pacer, gate.pacer
"""
NEVER = (
    QUEUE
    + """
pacer.SECONDS, pacer.MAX_HELD = 10**9, 2500
connections._every = requests._every = 10**9
"""
)
SLOWLY = """
connections._every = connections._turns = 2000
requests._every, requests._turns = 1, 2000
"""
LEAVE = (
    SLOWLY
    + """
import os, signal
os.kill(os.getpid(), signal.SIGTERM)
"""
)
SMALL = """
import socket
for waiting in ctx.master.addons.get('ollama_gate').connections._new:
    waiting.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
"""
NEAR_THE_END = 22_000
"""Of an answer: more than two small kernels keep, and less than with what the gate keeps."""


def small(port: int, data: bytes) -> Line:
    """A client whose kernel takes little that it does not read."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect(("127.0.0.1", port))
    return Line(plain).send(data)


def test_connections_begin_one_after_the_other(shared_upstream: Upstream) -> None:
    """Those at work have their turns between."""
    request = head("GET", "/api/version", BEARER, "Connection: close")
    with Controlled(shared_upstream.url) as gate, ExitStack() as stack:
        gate.do(NOTED)
        for wire in [stack.enter_context(Wire(gate.port, request)) for _ in range(30)]:
            assert parse(wire.read_all()).status == 200
        begun = eval(gate.do("result = ctx.begun"))  # noqa: S307
        assert len(begun) == 30
        assert all(later - earlier >= 6 for earlier, later in pairwise(begun))
        gate.do(NEVER + "pacer.SECONDS = 0.001")
        for wire in [stack.enter_context(Wire(gate.port, request)) for _ in range(5)]:
            assert parse(wire.read_all()).status == 200, "it waits while turns are long"
        gate.do(QUEUE + "listener.serve_until_cancelled = None")
        assert [ask(gate.port, "GET", "/api/version", BEARER).status for _ in range(3)] == [503] * 3


def test_further_requests_begin_a_few_at_a_time(shared_upstream: Upstream) -> None:
    """While they wait, their connections are at work: they keep it, have no deadline, and are answered at the end."""

    def ask_all() -> None:
        gate.do(NEVER + "any(not requests.take() for _ in range(8))")
        for wire in kept:
            wire.send(request)
        wait_until(lambda: gate.do(QUEUE + "result = len(requests._waiting)") == "20", "all to wait")

    request = head("GET", "/api/version", BEARER)
    with Controlled(shared_upstream.url, "--set", "ollama_max_connections=20") as gate, wires(gate.port, 20) as kept:
        for wire in kept:
            assert wire.send(request).read_response().status == 200
        gate.do(NOTED)
        ask_all()
        assert ask(gate.port, "GET", "/api/version", BEARER).status == 503
        gate.do("for peer in ctx.master.addons.get('ollama_gate').connections: peer.deadline = 0")
        time.sleep(0.6)  # Deadlines are looked at four times a second.
        gate.do(QUEUE + SLOWLY)
        assert [wire.read_response().status for wire in kept] == [200] * 20
        begun = eval(gate.do("result = ctx.begun"))  # noqa: S307
        assert len(begun) == 20
        assert max(map(begun.count, begun)) <= 8
        ask_all()
        gate.do(QUEUE + LEAVE)
        assert [wire.read_response().status for wire in kept] == [200] * 20
        assert_gone(*kept)
        assert gate.wait() == 0


def test_what_waits_for_its_turn_is_bounded_and_is_answered_at_the_end(shared_upstream: Upstream) -> None:
    size = 1 << 18

    def asking(more: int = 0) -> Wire:
        return stack.enter_context(Wire(gate.port, head("GET", "/api/version", BEARER, "X: " + "x" * more)))

    with Controlled(shared_upstream.url) as gate, ExitStack() as stack:
        gate.do(NEVER)
        assert asking().read_response().status == 200
        first, *waiting = [asking(more) for more in (1000, 0, 1500, 0)]
        assert first.read_response().status == 200, "with more than MAX_HELD the first has its turn"
        slow = stack.enter_context(small(gate.port, head("GET", f"/demo/bytes/{size}", BEARER)))
        wait_until(lambda: gate.do(QUEUE + "result = len(connections._waiting)") == "4", "four to wait")
        waiting.pop().close()
        gate.do(SMALL + QUEUE + LEAVE)
        assert [parse(wire.read_all()).status for wire in waiting] == [200, 200]
        slow.read_until(b"\r\n\r\n")
        while len(slow.received) < size - NEAR_THE_END:
            slow.received += slow.socket.recv(4096)
        time.sleep(0.2)
        assert len(slow.read_all()) == size
        assert gate.wait() == 0


def test_nobody_is_closed_because_others_wait_for_their_turn(shared_upstream: Upstream, tmp_path: Path) -> None:
    """An eighth of the connections may wait; if there are more, the first has its turn. Silent ones go before them."""
    cert = certificate(tmp_path)
    with Controlled(shared_upstream.url, "--certs", str(cert), "--set", "ollama_max_connections=16") as gate:
        gate.do(NEVER)
        with wires(gate.port, 15) as silent, Wire(gate.port) as good:
            wait_until(lambda: gate.do(QUEUE + "result = len(gate.connections._by_client)") == "14", "14 to begin")
            gate.do(QUEUE + "import time; gate.connections._check_new(time.monotonic() + 60)")  # Its time stands still.
            with wires(gate.port, 2):
                assert_gone(silent[0])
                with trusting(cert).wrap_socket(good.socket, server_hostname="localhost") as tls:
                    tls.sendall(head("GET", "/api/version", BEARER))
                    assert tls.recv(4096).startswith(b"HTTP/1.1 200")
                assert gate.do(QUEUE + "result = len(connections._waiting)") == "2"


def test_the_clients_of_a_proxy_wait_for_their_turn(shared_upstream: Upstream) -> None:
    """Until then they count for the proxy, so that fewer may wait than may come from one address."""
    options = ("--set", "ollama_trusted_proxies=127.0.0.1", "--set", "ollama_max_connections_per_client=80")
    with Controlled(shared_upstream.url, *options) as gate, ExitStack() as stack:
        gate.do(NEVER)
        asking = [head("GET", "/api/version", BEARER, f"X-Forwarded-For: 10.0.0.{number}") for number in range(100)]
        opened = [stack.enter_context(Wire(gate.port, request)) for request in asking]
        assert [wire.read_response().status for wire in opened[:-10]] == [200] * 90
