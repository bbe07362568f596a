"""What the tests share: a stand-in for Ollama, a real mitmdump in front of it, and raw sockets to both."""

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from scripts.tools.demo_upstream import DemoUpstream, SeenRequest

ROOT = Path(__file__).resolve().parents[2]
AUTH = ROOT / "addons" / "auth.py"
NO_FAST_PATH = ROOT / "tests" / "harness" / "no_fast_path.py"
KEY = "sk-ollama-0123456789abcdef0123456789abcdef"
BEARER = f"Authorization: Bearer {KEY}"
PATIENCE = 10.0
"""Seconds that anything may take on a busy machine before it counts as hanging."""


def wait_until(condition: Any, what: str, timeout: float = PATIENCE) -> Any:
    """The first true value of `condition()`."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout} s for {what}")


def free_port() -> int:
    """A port that nobody listens on: below those the kernel hands out, and of this test process alone."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4
    while True:
        port = 16_000 + worker * 4_000 + secrets.randbelow(4_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Upstream:
    """A DemoUpstream in a thread of its own."""

    def __init__(self, token_delay: float = 0.0) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.demo: DemoUpstream = self._call(self._make(token_delay))

    async def _make(self, token_delay: float) -> DemoUpstream:
        demo = DemoUpstream(token_delay=token_delay)
        await demo.start()
        return demo

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    @property
    def port(self) -> int:
        return self.demo.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.demo.port}"

    @property
    def connections(self) -> int:
        return self.demo.connections

    @property
    def open_connections(self) -> int:
        return self.demo.open_connections

    @property
    def requests(self) -> list[SeenRequest]:
        return list(self.demo.requests)

    @property
    def last(self) -> SeenRequest:
        return self.demo.requests[-1]

    def hold(self) -> None:
        """Streams stop after their first item."""
        self._loop.call_soon_threadsafe(self.demo.hold.clear)

    def go_on(self) -> None:
        self._loop.call_soon_threadsafe(self.demo.hold.set)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Nothing is seen upstream, and no connection is made, in this block."""
        before = self.connections, len(self.demo.requests)
        yield
        time.sleep(0.02)  # What was on its way would have arrived.
        assert (self.connections, len(self.demo.requests)) == before

    def reset(self) -> None:
        self.go_on()
        self.demo.requests.clear()

    def stop(self) -> None:
        self._call(self.demo.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


class Gate:
    """A mitmdump (or another of mitmproxy's programs) with auth.py, as a process of its own."""

    def __init__(
        self,
        upstream: str,
        *args: str,
        key: str | None = KEY,
        env: dict[str, str] | None = None,
        script: Path | str = AUTH,
        mode: str | None = None,
        program: str = "mitmdump",
        ready: bool = True,
        cwd: Path | str = "/",
        port: int | None = None,
    ) -> None:
        way = os.environ.get("TEST_ON")  # scripts/test runs the tests of the gate in each of these ways.
        if program == "mitmdump" and way == "uvloop":
            program = str(ROOT / "scripts" / "tools" / "mitmdump.py")
        if way == "no-fast-path":
            args = (*args, "-s", str(NO_FAST_PATH))
        self.port = port or free_port()
        self.dir = tempfile.TemporaryDirectory(prefix="gate-")
        self._out = open(Path(self.dir.name, "out"), "wb")  # noqa: SIM115
        variables = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
        variables |= {"OLLAMA_API_KEY": key} if key is not None else {}
        command = [
            *([sys.executable] if program.endswith(".py") else []),
            str(Path(sys.executable).parent / program),
            *("--mode", mode or f"reverse:{upstream}"),
            *("--listen-host", "127.0.0.1", "--listen-port", str(self.port)),
            *("--set", f"confdir={self.dir.name}/conf", "-s", str(script), *args),
        ]
        self.process = subprocess.Popen(
            command,
            env=variables | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
        )
        if ready:
            wait_until(
                lambda: self.process.poll() is not None or "listening on" in self.output, "the gate to start", 30
            )
            assert self.process.poll() is None, self.output

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return Path(self.dir.name, "out").read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    def find(self, text: str) -> str:
        """The first line of the output, now or soon, with that text in it."""
        return str(wait_until(lambda: next((line for line in self.lines if text in line), ""), f"{text!r} in the log"))

    @property
    def rss(self) -> int:
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        return self.process.wait(timeout)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._out.close()
        self.dir.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Controlled(Gate):
    """A gate with tests/harness/control.py in it: `do` runs a piece of Python in its process."""

    def __init__(self, upstream: str, *args: str, script: Path | str = AUTH, **rest: Any) -> None:
        self.control = tempfile.TemporaryDirectory(prefix="control-")
        env = rest.pop("env", {}) | {"CONTROL_DIR": self.control.name}
        self._count = 0
        super().__init__(
            upstream, "-s", str(ROOT / "tests" / "harness" / "control.py"), *args, script=script, env=env, **rest
        )

    def do(self, code: str) -> str:
        """The repr of what the code leaves in `result`, or the traceback."""
        self._count += 1
        name = Path(self.control.name, f"{self._count:04}")
        name.with_suffix(".part").write_text(textwrap.dedent(code))
        name.with_suffix(".part").rename(name.with_suffix(".todo"))
        done = name.with_suffix(".done")
        wait_until(done.exists, f"an answer to {code!r}")
        return done.read_text()

    def stop(self) -> None:
        super().stop()
        self.control.cleanup()


@dataclass
class Response:
    """What came back on a raw socket."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def parse(raw: bytes, *, head: bool = False) -> Response:
    """One response; its body is all that follows the head, chunks put together."""
    top, separator, body = raw.partition(b"\r\n\r\n")
    assert separator, f"no whole response: {raw!r}"
    line, *fields = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    if headers.get("transfer-encoding") == "chunked" and not head:
        body = unchunk(body)
    return Response(int(line.split()[1]), headers, body, raw)


def unchunk(body: bytes) -> bytes:
    """The content of a whole chunked body."""
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return content
        content, body = content + body[:length], body[length + 2 :]


class Wire:
    """A raw connection."""

    def __init__(self, port: int, data: bytes = b"", timeout: float = PATIENCE, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), timeout)
        self.received = b""
        if data:
            self.send(data)

    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def read_until(self, text: bytes) -> bytes:
        """Everything up to and with that text; what follows is kept."""
        while text not in self.received:
            piece = self.socket.recv(65536)
            assert piece, f"closed before {text!r}: {self.received!r}"
            self.received += piece
        end = self.received.index(text) + len(text)
        taken, self.received = self.received[:end], self.received[end:]
        return taken

    def read_response(self) -> Response:
        """One response with a Content-Length or chunks."""
        head = self.read_until(b"\r\n\r\n")
        fields = parse(head, head=True).headers
        if fields.get("transfer-encoding") == "chunked":
            return parse(head + self.read_until(b"0\r\n\r\n"))
        length = int(fields.get("content-length", 0))
        while len(self.received) < length:
            piece = self.socket.recv(65536)
            assert piece, "closed in the middle of a body"
            self.received += piece
        body, self.received = self.received[:length], self.received[length:]
        return parse(head + body)

    def read_all(self) -> bytes:
        """Everything until the other side closes; it must."""
        while piece := self.socket.recv(65536):
            self.received += piece
        taken, self.received = self.received, b""
        return taken

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def head(method: str, path: str, *fields: str, host: str = "gate") -> bytes:
    """A request head; a Host is added where no field is one."""
    hosts = () if any(field.lower().startswith("host:") for field in fields) else (f"Host: {host}",)
    return "\r\n".join((f"{method} {path} HTTP/1.1", *hosts, *fields, "", "")).encode("latin-1")


def ask(port: int, method: str, path: str, *fields: str, body: bytes = b"") -> Response:
    """One request on a connection of its own, which is asked to be closed."""
    length = (f"Content-Length: {len(body)}",) if body else ()
    with Wire(port, head(method, path, "Connection: close", *length, *fields) + body) as wire:
        return parse(wire.read_all(), head=method == "HEAD")


def chat(model: str = "demo", **more: object) -> bytes:
    """The body of a chat request."""
    return json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "why is the sky blue"}]} | more
    ).encode()
