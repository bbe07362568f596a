"""The system under the gate fails: what is denied stays denied, what can be answered is, and it recovers."""

import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.harness.base import BEARER, wait_until
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Controlled, Gate
from tests.harness.http2 import H2
from tests.harness.upstream import Upstream
from tests.harness.wire import Response, TlsWire, Wire, ask, chat, head


@pytest.mark.slow
def test_no_descriptors_left(upstream: Upstream) -> None:
    """As many connections as there are descriptors: strangers get nothing upstream, and afterwards all is well."""
    with Controlled(upstream.url) as gate, ExitStack() as stack:
        used = int(gate.do("import os; result = len(os.listdir('/proc/self/fd'))"))
        resource.prlimit(gate.process.pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
        with upstream.untouched():
            for _ in range(60):
                peer = stack.enter_context(socket.create_connection(("127.0.0.1", gate.port), 10))
                peer.sendall(b"GET / HTTP/1.1\r\n")
            time.sleep(1.5)  # asyncio tries again to accept after a second.
        stack.close()
        wait_until(lambda: answers(gate), "the gate to recover", 20)
        with upstream.untouched():
            assert ask(gate.port, "GET", "/api/tags").status == 401


class Few(Gate):
    """A gate that may open 256 files."""

    def _start(self, program: str, command: list[str], env: dict[str, str], cwd: str, fork: bool) -> Any:
        interpreter = [sys.executable] if command[0].endswith(".py") else []
        limited = ["bash", "-c", 'ulimit -n 256; exec "$@"', "x", *interpreter, *command]
        return subprocess.Popen(limited, env=env, cwd=cwd, stdout=self._out, stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.ways
def test_fewer_descriptors_than_connections(upstream: Upstream) -> None:
    """It is said at the start, and silent strangers make room in time: also for those who come at the same moment."""
    with Few(upstream.url) as gate, ExitStack() as stack:
        assert gate.find("ollama_max_connections is 4096, but there are file descriptors for ")
        for _ in range(3):
            for _ in range(150):
                with suppress(OSError):
                    stack.enter_context(socket.create_connection(("127.0.0.1", gate.port), 10))
            assert ask(gate.port, "POST", "/api/chat", BEARER, body=chat()).status == 200
        assert gate.find("were closed to make room")
        assert "Too many open files" not in gate.output
        assert "Traceback" not in gate.output


@pytest.mark.slow
def test_what_idle_clients_of_http2_keep_open(upstream: Upstream, cert: Path) -> None:
    """A client whose 32 requests have ended keeps few connections to Ollama: eight could take all descriptors."""
    with Few(upstream.url, "--certs", str(cert)) as gate, ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(H2(gate.port, cert))
            upstream.reset()
            upstream.hold()
            streams = [client.request("POST", "/api/chat", body=chat()) for _ in range(32)]
            wait_until(lambda: len(upstream.requests) == 32, "the requests upstream")
            upstream.go_on()
            for stream in streams:
                assert b'"done":true' in client.body(stream)
        wait_until(lambda: upstream.open_connections < 32, "most connections upstream to end")
        with TlsWire(gate.port, cert, head("GET", "/api/tags", BEARER, "Connection: close")) as wire:
            assert b"200 OK" in wire.read_all()


@pytest.mark.slow
def test_no_descriptor_for_the_connection_upstream(upstream: Upstream) -> None:
    """The last one went to the client: it is told so in JSON, and the next request finds everything in order."""
    with Controlled(upstream.url) as gate, Wire(gate.port, head("GET", "/")[:-2]) as wire:
        wait_until(lambda: gate.do("result = len(ctx.master.addons.get('ollama_gate').connections)") == "1", "it")
        resource.prlimit(gate.process.pid, resource.RLIMIT_NOFILE, (100, 100))
        gate.do("""
            import asyncio, os
            taken = []
            def take():
                try:
                    while True:
                        taken.append(os.dup(0))
                except OSError:
                    pass
            loop = asyncio.get_running_loop()
            loop.call_later(0.2, take)
            loop.call_later(2, lambda: [os.close(one) for one in taken])
        """)
        time.sleep(0.5)
        with upstream.untouched():
            wire.send(f"{BEARER}\r\n\r\n".encode())
            answer = wire.read_response()
        assert answer.status == 503
        assert answer.json == {"error": "Ollama is not reachable"}
        wait_until(lambda: answers(gate), "the gate to recover", 20)


@pytest.mark.slow
def test_the_clock_jumps(upstream: Upstream) -> None:
    """Years ahead and back, in the middle of a stream: deadlines go by a clock that does not."""
    body = chat()
    with Controlled(upstream.url) as gate:
        upstream.hold()
        with Wire(gate.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body) as wire:
            wire.read_until(b'"done":false}')
            for years in (10, -10):
                gate.do(f"""
                    import time, builtins
                    builtins.real_time = getattr(builtins, "real_time", time.time)
                    time.time = lambda: builtins.real_time() + {years} * 365 * 86400
                """)
                assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
                with upstream.untouched():
                    assert ask(gate.port, "GET", "/api/tags").status == 401
                time.sleep(0.6)  # Two sweeps.
            upstream.go_on()
            wire.read_until(b'"done":true')
        assert "Traceback" not in gate.output


def test_the_clock_is_set_back_and_nobody_is_locked_out(upstream: Upstream, tmp_path: Path) -> None:
    """A board without a clock of its own, a machine that resumes: a limit of a minute lasts a minute."""
    file = tmp_path / "keys.toml"
    file.write_text(entry("minute", requests_per_minute=5, scopes=["all"]))
    with Controlled(upstream.url, key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:

        def asked() -> Response:
            return ask(gate.port, "GET", "/api/version", bearer("minute"))

        gate.do("import time; time.real = time.time; time.time = lambda: time.real() + 7200")
        assert [asked().status for _ in range(5)] == [200] * 5
        gate.do("import time; time.time = time.real")
        with upstream.untouched():
            refused = asked()
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) <= 60
        gate.do("from ollama_auth import clock; clock.offset = 61")
        assert asked().status == 200


def test_the_log_can_not_be_written_at_all(upstream: Upstream) -> None:
    """Even if writing a line raises something nobody thought of, strangers stay out and the door stays open."""
    with Controlled(upstream.url) as gate:
        gate.do("""
            import ollama_auth.telemetry.access_log as m
            def boom(*args):
                raise MemoryError
            m.AccessLog.write = boom
        """)
        with upstream.untouched():
            assert ask(gate.port, "GET", "/api/tags").status in (401, 503)
        assert gate.process.poll() is None


def answers(gate: Controlled) -> bool:
    try:
        return ask(gate.port, "GET", "/api/tags", BEARER).status == 200
    except (OSError, AssertionError):
        return False
