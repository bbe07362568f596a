"""Requests leave no cyclic garbage, and garbage is collected in idle moments."""

import asyncio
import gc
import resource
from collections.abc import Iterator

import pytest

from ollama_auth import process
from tests.harness.base import BEARER
from tests.harness.gate import Controlled
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, ask, chat, head

COUNT = """
    import gc
    gc.collect()
    gc.disable()
"""
FOUND = """
    import collections, gc
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = collections.Counter(type(one).__name__ for one in gc.garbage)
    gc.garbage.clear()
    gc.enable()
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
    assert gate.do("import gc; result = gc.get_threshold()[:2]") == str(
        (process.YOUNG_THRESHOLD, process.MIDDLE_THRESHOLD)
    )


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
    tidying.cancel()


@pytest.mark.parametrize(
    ("limit", "most"), [(1024, 454), (256, 70), (128, 8), (8, 8), (20_000, 4096), (resource.RLIM_INFINITY, 4096)]
)
def test_connections_that_there_are_descriptors_for(monkeypatch: pytest.MonkeyPatch, limit: int, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert process.most_connections(4096, 20) == most
    assert process.most_connections(5, 20) == 5
