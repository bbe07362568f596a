"""Requests leave no cyclic garbage, and garbage is collected in idle moments."""

import asyncio
import gc
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_auth import process
from ollama_auth.proxy import teardown
from tests.harness.base import BEARER, wait_until
from tests.harness.certificates import certificate
from tests.harness.gate import Controlled
from tests.harness.http2 import H2
from tests.harness.upstream import Upstream
from tests.harness.wire import TlsWire, Wire, ask, chat, head, wires

COUNT = """
    import gc
    gc.collect()
    gc.disable()
"""
GARBAGE = """
    import collections, gc
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = collections.Counter(type(one).__name__ for one in gc.garbage)
    gc.garbage.clear()
    gc.enable()
"""
FOUND = f"""{GARBAGE}
    result = found["GateStream"], found["HTTPFlow"], found["Exchange"], found["TypeError"]
"""


@pytest.fixture(scope="module")
def gate(shared_upstream: Upstream) -> Iterator[Controlled]:
    with Controlled(shared_upstream.url) as gate:
        yield gate


@pytest.mark.parametrize(
    ("method", "path", "body"), [("GET", "/api/version", b""), ("POST", "/api/chat", chat()), ("GET", "/api/tags", b"")]
)
def test_a_request_leaves_nothing(gate: Controlled, upstream: Upstream, method: str, path: str, body: bytes) -> None:
    """Its memory is freed by reference counting, so that thousands of requests a second need no garbage collection."""
    request = head(method, path, BEARER, f"Content-Length: {len(body)}") + body
    with Wire(gate.port) as wire:
        gate.do(COUNT)
        for _ in range(10):
            wire.send(request)
            wire.read_until(b"0\r\n\r\n" if body else b"}")
        ask(gate.port, "GET", "/api/version")  # The reader of a connection may still hold the last request.
        assert gate.do(FOUND) == "(0, 0, 0, 0)"


def test_thresholds(gate: Controlled) -> None:
    thresholds = process.YOUNG_THRESHOLD, process.MIDDLE_THRESHOLD, process.NEVER
    assert gate.do("import gc; result = gc.get_threshold()") == str(thresholds)


PARTS = f"""
    import gc
    gc.collect(1)
{GARBAGE}
    result = sorted(name for name in found if name in (
        "Context", "GateLayer", "ClientConnection", "BoundedHttp1Server", "ClientTls",
        "BoundedHttp2Server", "WindowedH2Connection", "H2Stream", "GateStream", "Exchange", "BulkReader",
    ))
"""


@pytest.mark.slow
def test_a_connection_leaves_nothing(shared_upstream: Upstream, tmp_path: Path) -> None:
    """However old it is: a full collection, which stops everybody, is not needed for it.

    mitmproxy's handler may be left, emptied: a frame of a task that was cancelled refers to its own exception.
    """
    cert = certificate(tmp_path)
    request = head("POST", "/api/chat", BEARER, f"Content-Length: {len(chat())}") + chat()
    shared_upstream.hold()
    with Controlled(shared_upstream.url, "--certs", str(cert)) as tls, Controlled(shared_upstream.url) as plain:
        opened: list[Wire] = [*(Wire(plain.port, request) for _ in range(4)), Wire(plain.port)]
        opened += [TlsWire(tls.port, cert, request, "http/1.1") for _ in range(3)]
        for wire in opened:
            if wire is not opened[4]:
                wire.read_until(b'"done":false}')
        clients = [H2(tls.port, cert) for _ in range(3)]
        streams = [client.request("POST", "/api/chat", body=chat()) for client in clients]
        for client, stream in zip(clients, streams, strict=True):
            assert client.status(stream) == 200
        for gate in (plain, tls):
            gate.do(COUNT)
        opened[0].close()  # In the middle.
        clients[0].wire.close()
        shared_upstream.go_on()
        for wire in opened[1:]:
            if wire is not opened[4]:
                wire.read_until(b"0\r\n\r\n")
        for client, stream in list(zip(clients, streams, strict=True))[1:]:
            client.body(stream)
        for one in (*opened, *(client.wire for client in clients)):
            one.close()
        for gate in (plain, tls):
            wait_until(lambda: gate.do(CONNECTIONS) == "0", "the connections to end")  # noqa: B023, at once
        time.sleep(teardown.DELAY + 0.5)
        for gate in (plain, tls):
            wait_until(lambda: gate.do(WAITING) == "False", "the connections to be taken apart")  # noqa: B023, at once
        assert [gate.do(PARTS) for gate in (plain, tls)] == ["[]", "[]"]
        assert "Traceback" not in plain.output + tls.output


WAITING = "result = any('take_apart' in repr(handle) for handle in ctx.master.event_loop._scheduled)"
CONNECTIONS = "result = len(ctx.master.addons.get('proxyserver').connections)"
FULL = "import gc; result = gc.get_stats()[2]['collections']"


def test_many_clients_are_not_stopped_by_a_full_collection(gate: Controlled) -> None:
    """What has grown beyond a bound is left alone until few clients are there."""
    gate.do(f"""
        import gc
        from ollama_auth import process
        process.IDLE_MIDDLE_THRESHOLD = process.IDLE_FULL_THRESHOLD = 0
        process.FULL_OBJECTS, process.FEW_CLIENTS, process.QUIET_CHECKS = -{10**9}, 3, 0
        gc.set_threshold(100_000, {process.MIDDLE_THRESHOLD}, {process.NEVER})
    """)
    with wires(gate.port, 5, head("GET", "/api/version", BEARER)) as opened:
        for wire in opened:
            wire.read_response()
        before = int(gate.do(FULL))
        time.sleep(5 * process.IDLE_CHECK_SECONDS)
        assert int(gate.do(FULL)) <= before + 1
    wait_until(lambda: int(gate.do(FULL)) > before + 3, "full collections")


async def test_collections_in_idle_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    counts, idle = [0, 0, 0], [False]
    monkeypatch.setattr(gc, "get_count", lambda: tuple(counts))
    monkeypatch.setattr(gc, "collect", asked.append)
    monkeypatch.setattr(process, "IDLE_CHECK_SECONDS", 0.0)

    async def after(young: int, times: int, *, leisure: bool) -> list[int]:
        counts[1:], idle[0] = [young, times], leisure
        asked.clear()
        for _ in range(5):
            await asyncio.sleep(0)
        return asked[:1]

    tidying = asyncio.create_task(process.collect_when_idle(lambda: idle[0]))
    assert await after(process.IDLE_MIDDLE_THRESHOLD, 0, leisure=False) == []
    assert await after(process.IDLE_MIDDLE_THRESHOLD - 1, 0, leisure=True) == []
    assert await after(process.IDLE_MIDDLE_THRESHOLD, 0, leisure=True) == [1]
    assert await after(process.IDLE_MIDDLE_THRESHOLD, process.IDLE_FULL_THRESHOLD, leisure=True) == [2]
    monkeypatch.setattr(process, "MOST_OBJECTS", -(10**9))
    assert await after(process.IDLE_MIDDLE_THRESHOLD, 1, leisure=False) == [2], "memory does not grow without end"
    tidying.cancel()


@pytest.mark.parametrize(
    ("limit", "most"), [(1024, 454), (256, 70), (128, 8), (8, 8), (20_000, 4096), (resource.RLIM_INFINITY, 4096)]
)
def test_connections_that_there_are_descriptors_for(monkeypatch: pytest.MonkeyPatch, limit: int, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert process.most_connections(4096, 20) == most
    assert process.most_connections(5, 20) == 5
