"""Several Ollama servers behind the gate: HAProxy of scripts/deploy/pool, and endpoints that have a path."""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness.base import BEARER, ROOT, free_port, wait_until
from tests.harness.gate import Gate, Ready
from tests.harness.programs import proxy, run, tool
from tests.harness.upstream import Scripted, Upstream
from tests.harness.wire import Line, ask, chat, head

POOL = ROOT / "scripts" / "deploy" / "pool"
BODY, VERSION = chat(), b'{"version":"0.9"}'
CHAT = head("POST", "/api/chat", BEARER, f"Content-Length: {len(BODY)}", "Connection: close") + BODY


@contextmanager
def haproxy(servers: list[Upstream], folder: Path) -> Iterator[int]:
    """A port of HAProxy with our example, in front of these servers."""
    port = free_port()
    text = (POOL / "haproxy.cfg").read_text()
    lines = "\n".join(f"    server gpu{number} 127.0.0.1:{one.port}" for number, one in enumerate(servers, 1))
    text = re.sub(r"( +server gpu\d .*\n)+", lambda _: lines + "\n", text)
    text = text.replace("127.0.0.1:11430", f"127.0.0.1:{port}").replace("/run/haproxy", str(folder))
    (folder / "haproxy.cfg").write_text(text)
    command = [tool("haproxy"), "-f", str(folder / "haproxy.cfg")]
    run(*command, "-c")
    with proxy([*command, "-db"], port, folder):
        yield port


def control(folder: Path, command: str) -> str:
    """Say something to HAProxy's socket."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(folder / "ollama.sock"))
        line.sendall(f"{command}\n".encode())
        return line.makefile().read()


def whole(line: Line) -> bool:
    """Whether a stream ends as it should."""
    with line:
        return b'"done":true' in line.read_all()


def asked(port: int, path: str) -> set[int]:
    """The statuses of 40 requests, four at once."""
    body = chat(stream=False)
    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(lambda _: ask(port, "POST", path, BEARER, body=body).status, range(40)))


def count(server: Upstream, path: str) -> int:
    return sum(request.target == path for request in server.requests)


@pytest.mark.slow
def test_one_killed_one_drained_one_slow(tmp_path: Path) -> None:
    """No request that comes then fails, and no stream but those of the killed server breaks."""
    with ExitStack() as stack:
        killed, drained, slow = servers = [Upstream(), Upstream(), Upstream(token_delay=0.01)]
        for server in servers[1:]:
            stack.callback(server.stop)
        port = stack.enter_context(haproxy(servers, tmp_path))
        gate = stack.enter_context(Ready(f"http://127.0.0.1:{port}"))
        assert asked(gate.port, "/api/chat") == {200}
        assert count(slow, "/api/chat") < min(count(killed, "/api/chat"), count(drained, "/api/chat"))

        for server in servers:
            server.hold()
        streams = [Line.to(gate.port, CHAT) for _ in range(9)]
        for line in streams:
            assert b"200 OK" in line.read_until(b'"done":false}')
        wait_until(lambda: [server.open_connections for server in servers] == [3, 3, 3], "no health check to be on")
        killed.stop()
        assert asked(gate.port, "/api/show") == {200}
        control(tmp_path, "set server ollama/gpu2 state drain")
        before = count(drained, "/api/show")
        assert asked(gate.port, "/api/show") == {200}
        assert before == count(drained, "/api/show") > 0
        for server in (drained, slow):
            server.go_on()
        assert sorted(map(whole, streams)) == [False] * 3 + [True] * 6


BASE = "/olla/ollama"


def test_an_endpoint_with_a_path() -> None:
    """Clients send Ollama's paths, and the endpoint sees its own before them."""
    with ExitStack() as stack:
        seen: list[bytes] = []

        def answer(line: Line) -> None:
            seen.append(line.head().partition(b"\r\n")[0])
            line.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n" + VERSION)

        server = Scripted().start(answer)
        stack.callback(server.stop)
        gate = stack.enter_context(Ready(server.url, "--set", f"ollama_base_path={BASE}/"))
        assert ask(gate.watch, "GET", "/readyz", "Host: localhost").status == 200
        assert seen == [f"GET {BASE}/api/version HTTP/1.1".encode()]
        assert ask(gate.port, "GET", "/api/version?a=b", BEARER).body == VERSION
        assert seen[1:] == [f"GET {BASE}/api/version?a=b HTTP/1.1".encode()]
        assert ask(gate.port, "GET", "/api/version").status == 401
        assert ask(gate.port, "GET", f"{BASE}/api/version", BEARER).status in (200, 404)
        assert gate.find(f"guarding {server.url}{BASE},")
        assert gate.find("/api/version 200")


@pytest.mark.parametrize("path", ["olla", "//olla", "/a/../b", "/a b", "/api", "/v1/", "/a?b", "/%2e"])
def test_a_path_that_cannot_be(path: str, upstream: Upstream) -> None:
    with Gate(upstream.url, "--set", f"ollama_base_path={path}", ready=False) as gate:
        assert gate.wait() == 1
        assert "ollama_base_path" in gate.output
