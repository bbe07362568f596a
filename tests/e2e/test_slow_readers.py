"""Clients that read slowly, or not at all: what is kept for them is bounded, and who takes nothing is disconnected."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.harness.base import BEARER, wait_until
from tests.harness.certificates import certificate, trusting
from tests.harness.gate import Controlled, assert_sound, logged
from tests.harness.upstream import Upstream
from tests.harness.wire import Line, ask, head

pytestmark = pytest.mark.ways

LARGE = head("GET", f"/demo/bytes/{64 << 20}", BEARER)
KEPT = """
    gate = ctx.master.addons.get("ollama_gate")
    def size(io):
        return io.writer.transport.get_write_buffer_size() + len(io.reader._buffer)
    result = max(sum(map(size, peer.handler.transports.values())) for peer in gate.connections)
"""
LEFT = """
    gate = ctx.master.addons.get("ollama_gate")
    result = len(gate.connections) + len(gate.connections._leaving), dict(gate.connections._networks)
"""


@pytest.fixture(scope="module")
def gate(shared_upstream: Upstream) -> Iterator[Controlled]:
    with Controlled(shared_upstream.url, "--set", "ollama_access_log=-", "--set", "ollama_idle_timeout=2") as gate:
        yield gate
        assert_sound(gate, shared_upstream)


def slow(port: int, data: bytes) -> Line:
    """A client whose kernel takes little that it does not read; the answer has begun."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect(("127.0.0.1", port))
    line = Line(plain)
    line.send(data)
    assert plain.recv(1, socket.MSG_PEEK)
    return line


def gone(gate: Controlled) -> bool:
    """The gate has forgotten all of its connections."""
    return gate.do(LEFT) == "(0, {})"


@pytest.mark.slow
@pytest.mark.parametrize("rest", [b"", head("GET", "/api/tags", BEARER) * 300], ids=["one", "pipelined"])
def test_who_takes_nothing_is_disconnected(gate: Controlled, upstream: Upstream, rest: bytes) -> None:
    with logged(gate) as lines, slow(gate.port, LARGE + rest) as client:
        wait_until(lambda: gone(gate), "the connection to end")
        with suppress(ConnectionResetError):  # What the kernel has may still be read.
            while client.socket.recv(1 << 20):
                pass
    assert lines[0].get("reason") == "client left", lines
    assert "took nothing" in gate.find("clients that took nothing")


@pytest.mark.slow
def test_who_takes_nothing_of_an_answer_that_is_over_is_disconnected(gate: Controlled, upstream: Upstream) -> None:
    """Ollama has sent all of it, and the connection is closed but for what is to be sent."""
    with logged(gate), slow(gate.port, head("GET", f"/demo/bytes/{3 << 20}", BEARER, "Connection: close")):
        wait_until(lambda: gone(gate), "the connection to end")


@pytest.mark.slow
def test_who_reads_slowly_is_never_disconnected(gate: Controlled, upstream: Upstream) -> None:
    """It takes three times as long as a client may take nothing."""
    size = 3 << 20
    data = head("GET", f"/demo/bytes/{size}", BEARER, "Connection: close")
    with logged(gate) as lines, slow(gate.port, data) as client:
        client.read_until(b"\r\n\r\n")
        until = time.monotonic() + 6
        got = len(client.received)
        while time.monotonic() < until:
            got += len(client.socket.recv(2000))
            time.sleep(0.05)
        while piece := client.socket.recv(1 << 20):
            got += len(piece)
    assert got == size
    assert "reason" not in lines[0]


def test_what_is_kept_for_a_slow_reader_is_bounded(gate: Controlled, upstream: Upstream) -> None:
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(slow(gate.port, LARGE))
        for _ in range(5):
            time.sleep(0.2)
            assert int(gate.do(KEPT)) <= 272 << 10
    wait_until(lambda: gone(gate), "the connections to end")


def test_a_slow_reader_with_tls(upstream: Upstream, tmp_path: Path) -> None:
    cert = certificate(tmp_path)
    options = ("--certs", str(cert), "--set", "ollama_idle_timeout=1")
    with Controlled(upstream.url, *options) as gate:
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.connect(("127.0.0.1", gate.port))
            with trusting(cert).wrap_socket(plain, server_hostname="localhost") as client:
                client.sendall(LARGE)
                time.sleep(0.5)
                assert int(gate.do(KEPT)) <= 400 << 10
                wait_until(lambda: gone(gate), "the connection to end")
        assert_sound(gate, upstream)


def test_others_are_served_beside_them(gate: Controlled, upstream: Upstream) -> None:
    with slow(gate.port, LARGE):
        assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
    wait_until(lambda: gone(gate), "the connections to end")
