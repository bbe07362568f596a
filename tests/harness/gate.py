"""The gateway under test, as a process of its own, and what holds for it after every test."""

import atexit
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from mitmproxy.certs import CertStore

from tests.harness.base import AUTH, BEARER, KEY, PATIENCE, ROOT, free_port, wait_until
from tests.harness.fork_server import PROGRAMS, Forked, server
from tests.harness.upstream import Upstream
from tests.harness.wire import Line, chat, head, wires

UVLOOP = ROOT / "scripts" / "tools" / "mitmdump.py"
NO_FAST_PATH = ROOT / "tests" / "harness" / "no_fast_path.py"
WAY = os.environ.get("TEST_WAY", "")
"""How scripts/test has gates run: on "uvloop", with "no fast path", or, where it is empty, as mitmdump runs them."""
CRASHED = ("mitmproxy has crashed", "Addon error", "Traceback", "Unhandled", "the request was denied")


@functools.cache
def certificate_authority() -> str:
    """A directory with the files that mitmproxy would make for every new confdir, slowly."""
    folder = tempfile.mkdtemp(prefix="conf-")
    CertStore.from_store(folder, "mitmproxy", 2048)
    atexit.register(shutil.rmtree, folder)
    return folder


class Running(Protocol):
    """A gate, in whatever it runs: its port on 127.0.0.1, and a folder in which the file `out` is its output."""

    port: int
    dir: tempfile.TemporaryDirectory[str]


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
        fork: bool = True,
    ) -> None:
        """Start it, and wait until it listens if it is to be `ready`; without `fork` it is executed."""
        self.port = port or free_port()
        self.dir = tempfile.TemporaryDirectory(prefix="gate-")
        shutil.copytree(certificate_authority(), f"{self.dir.name}/conf")
        self._out = open(Path(self.dir.name, "out"), "wb")  # noqa: SIM115
        variables = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
        variables |= {"OLLAMA_API_KEY": key} if key is not None else {}
        variables |= env or {}
        command = [
            str(UVLOOP if WAY == "uvloop" and program == "mitmdump" else Path(sys.executable).parent / program),
            *("--mode", mode or f"reverse:{upstream}"),
            *("--listen-host", "127.0.0.1", "--listen-port", str(self.port)),
            *("--set", f"confdir={self.dir.name}/conf", "-s", str(script), *args),
            *(("-s", str(NO_FAST_PATH)) if WAY == "no fast path" else ()),
        ]
        # What a test tells Python itself takes effect at an execution only.
        fork = fork and not any(name.startswith("PYTHON") for name in env or {})
        self.process = self._start(program, command, variables, str(cwd), fork)
        if ready:
            wait_until(
                lambda: self.process.poll() is not None or "listening on" in self.output, "the gate to start", 90
            )
            assert self.process.poll() is None, self.output

    def _start(
        self, program: str, command: list[str], env: dict[str, str], cwd: str, fork: bool
    ) -> Forked | subprocess.Popen[bytes]:
        if fork and program in PROGRAMS:
            return server(program).start(command, env, cwd, Path(self.dir.name, "out"))
        interpreter = [sys.executable] if command[0].endswith(".py") else []
        return subprocess.Popen(
            [*interpreter, *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
        )

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


class Place(NamedTuple):
    """Where a gate listens, and where it says whether it is ready."""

    port: int
    watch: int

    @classmethod
    def free(cls) -> Self:
        return cls(free_port(), free_port())


class Ready(Gate):
    """A gate that says at a port of its own whether it is ready."""

    def __init__(self, upstream: str, *args: str, place: Place | None = None, **rest: Any) -> None:
        self.watch = place.watch if place else free_port()
        watched = ("--set", f"ollama_metrics_listen=127.0.0.1:{self.watch}")
        super().__init__(upstream, *watched, *args, port=place.port if place else None, **rest)


_parsed: dict[str, tuple[int, list[dict[str, Any]]]] = {}


def log_lines(gate: Running) -> list[dict[str, Any]]:
    """The access log of a gate that writes it as JSON to standard output."""
    name = gate.dir.name
    offset, lines = _parsed.get(name, (0, []))
    with Path(name, "out").open("rb") as file:
        file.seek(offset)
        new = file.read().rpartition(b"\n")[0]
    lines = lines + [json.loads(line) for line in new.splitlines() if line.startswith(b'{"time"')]
    _parsed[name] = (offset + len(new), lines)
    return lines


def assert_sound(gate: Gate, upstream: Upstream | None = None, *, running: bool = True) -> None:
    """Nothing raised, no request was logged twice, and no connection upstream is left."""
    assert (gate.process.poll() is None) == running, gate.output
    for words in CRASHED:
        assert words not in gate.output, gate.output
    ids = [line["id"] for line in log_lines(gate) if len(line["id"]) == 16]  # Others are what a client chose.
    assert len(ids) == len(set(ids)), "a request was logged twice"
    if upstream:
        wait_until(lambda: not upstream.open_connections, "the connections upstream to end")


@contextmanager
def logged(gate: Gate, count: int = 1) -> Iterator[list[dict[str, Any]]]:
    """In this block so many requests begin and end, and each has one line in the log; the list is filled at its end."""
    before = -1
    while before != (before := len(log_lines(gate))):
        time.sleep(0.02)  # A request that has ended may still be written.
    begun = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def found() -> list[dict[str, Any]]:
        return [line for line in log_lines(gate)[before:] if line["time"] >= begun]  # Others end late.

    lines: list[dict[str, Any]] = []
    yield lines
    if len(found()) < count:
        wait_until(lambda: len(found()) >= count, f"{count} lines in the log")
    time.sleep(0.002)  # One too many would have come.
    lines += found()
    assert len(lines) == count, lines


@contextmanager
def streams(gate: Running, upstream: Upstream, count: int, source: str = "127.0.0.1") -> Iterator[list[Line]]:
    """So many chats under way; each has got its first token, and gets no more before `upstream.go_on()`."""
    upstream.hold()
    body = chat()
    data = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}", "Connection: close") + body
    with wires(gate.port, count, data, source) as opened:
        for one in opened:
            assert b"200 OK" in one.read_until(b'"done":false}')
        yield opened
