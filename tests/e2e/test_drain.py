"""Leaving: listening stops at once, what runs ends whole, what idles is closed, and there is an end to it."""

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.harness.base import BEARER, PATIENCE, SECONDS, free_port, wait_until
from tests.harness.certificates import certificate
from tests.harness.gate import Gate, assert_sound, log_lines, streams
from tests.harness.http2 import H2
from tests.harness.upstream import Upstream
from tests.harness.wire import Line, Wire, ask, chat, head, parse

pytestmark = pytest.mark.ways


@contextmanager
def leaving(upstream: Upstream, *args: str) -> Iterator[Gate]:
    """A gate that is expected to end by itself, with status 0 and a log that says nothing bad."""
    with Gate(upstream.url, "--set", "ollama_access_log=-", *args) as gate:
        yield gate
        assert gate.wait(PATIENCE) == 0, gate.output
        assert_sound(gate, running=False)


def refused(gate: Gate) -> bool:
    """Nobody listens."""
    try:
        socket.create_connection(("127.0.0.1", gate.port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def end_whole(running: list[Line]) -> None:
    for one in running:
        text = one.read_all()
        assert b'"done":true' in text
        assert text.endswith(b"0\r\n\r\n")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "count"), [(signal.SIGTERM, 50), (signal.SIGINT, 3)])
def test_nothing_that_runs_is_lost(upstream: Upstream, number: int, count: int) -> None:
    with leaving(upstream) as gate, streams(gate, upstream, count) as running, ExitStack() as stack:
        idle = [stack.enter_context(Wire(gate.port, data)) for data in (b"", b"GET / HTTP/1.1\r\nHost:")]
        friend = stack.enter_context(Wire(gate.port, head("GET", "/api/tags", BEARER)))
        assert friend.read_response().status == 200
        body = chat()
        post = head("POST", "/demo/sink", BEARER, f"Content-Length: {len(body)}")
        sending = stack.enter_context(Wire(gate.port, post))
        silent = stack.enter_context(Wire(gate.port, head("GET", "/demo/silent/1", BEARER)))
        wait_until(lambda: len(upstream.requests) == count + 3, "all of them upstream")

        gate.signal(number)
        wait_until(lambda: refused(gate), "listening to stop")
        assert friend.read_all() == b"", "what idles is closed at once"
        assert idle[0].read_all() == b""
        assert gate.process.poll() is None

        sending.send(body)
        assert parse(sending.read_all()).json == {"bytes": len(body)}
        answer = parse(silent.read_all())
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        upstream.go_on()
        end_whole(running)
        gate.wait(PATIENCE)
        lines = log_lines(gate)
        assert len(lines) == count + 3
        assert all(line["status"] == 200 and "reason" not in line for line in lines)


def test_a_slow_reader_gets_all_of_it(upstream: Upstream) -> None:
    """What was handed to the kernel, and what was not yet."""
    size = 20 << 20
    with leaving(upstream) as gate, Wire(gate.port, head("GET", f"/demo/bytes/{size}", BEARER)) as wire:
        wire.read_until(b"\r\n\r\n")
        gate.signal()
        wait_until(lambda: refused(gate), "listening to stop")
        got = len(wire.received)
        while piece := wire.socket.recv(1 << 20):
            got += len(piece)
        assert got == size


def test_http_2(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> None:
    cert = certificate(tmp_path_factory.mktemp("tls"))
    with (
        leaving(upstream, "--certs", str(cert)) as gate,
        H2(gate.port, cert) as idle,
        H2(gate.port, cert, graceful=True) as client,
    ):
        upstream.hold()
        assert idle.status(idle.request("GET", "/api/tags")) == 200
        running = [client.request("POST", "/api/chat", body=chat()) for _ in range(5)]
        for stream in running:
            assert client.status(stream) == 200
        gate.signal()
        idle.until_closed()
        upstream.go_on()
        for stream in running:
            assert b'"done":true' in client.body(stream)
        client.until_closed()


def test_the_grace_period_ends(upstream: Upstream) -> None:
    """What still runs then is cut, visibly, and each has its line."""
    with leaving(upstream, "--set", "ollama_grace_period=1") as gate, streams(gate, upstream, 3) as running:
        gate.signal()
        for one in running:
            with suppress(ConnectionResetError):
                assert b"\r\n0\r\n" not in one.read_all()
        gate.wait(PATIENCE)
        gate.find("stopped with 3 requests at work")
        assert [line["reason"] for line in log_lines(gate)] == ["stopped"] * 3


def test_a_second_signal_ends_it_now(upstream: Upstream) -> None:
    with leaving(upstream, "--set", "ollama_grace_period=3600") as gate, streams(gate, upstream, 2):
        gate.signal()
        gate.find("2 requests have up to 3600 s to end")
        assert gate.process.poll() is None
        gate.signal(signal.SIGINT)
        gate.wait(PATIENCE)
        assert [line["reason"] for line in log_lines(gate)] == ["stopped"] * 2


def test_a_flood_while_leaving(upstream: Upstream) -> None:
    """Strangers that linger, and half-open heads, hold up nothing."""
    with leaving(upstream, "--set", "ollama_grace_period=3600") as gate, ExitStack() as stack:
        for data in (head("POST", "/", "Content-Length: 9"), b"GET /", b"") * 20:
            stack.enter_context(Wire(gate.port, data))
        gate.signal()
        gate.wait(SECONDS)


def test_a_gate_to_an_https_endpoint_ends_well() -> None:
    """mitmproxy's UDP listener, which comes with https, crashed every other one on its way out."""
    for _ in range(4):
        with Gate("https://127.0.0.1:9") as gate:
            gate.signal()
            assert gate.wait() == 0


def test_a_load_balancer_learns_of_it_first(upstream: Upstream) -> None:
    """In the delay it says that it is not ready, and takes what still comes; a second signal ends the delay."""
    watch = free_port()
    options = ("ollama_drain_delay=3600", f"ollama_metrics_listen=127.0.0.1:{watch}")
    with leaving(upstream, *(word for option in options for word in ("--set", option))) as gate:
        with streams(gate, upstream, 1) as running:
            assert ask(watch, "GET", "/readyz", f"Host: 127.0.0.1:{watch}").status == 200
            gate.signal()
            wait_until(lambda: ask(watch, "GET", "/readyz", f"Host: 127.0.0.1:{watch}").status == 503, "it to say so")
            answer = ask(gate.port, "GET", "/api/tags", BEARER)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert ask(gate.port, "GET", "/api/tags").status == 401
            upstream.go_on()
            end_whole(running)
        assert gate.process.poll() is None
        gate.signal()
