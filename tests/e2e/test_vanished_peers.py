"""Clients and an Ollama that vanish without a word are noticed; those that are there may be silent, or take nothing."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness.base import BEARER, PATIENCE, wait_until
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Controlled, Gate, assert_sound, log_lines
from tests.harness.upstream import Scripted, Upstream
from tests.harness.wire import Line, ask, chat, head

QUICK = ("idle=1", "interval=1", "probes=2")
"""A peer has vanished after 3 s without a sign of it."""
SHORT = [word for option in QUICK for word in ("--set", f"ollama_keepalive_{option}")]
VANISHED_AFTER = 3
HELD = head("POST", "/api/chat", BEARER, f"Content-Length: {len(chat())}") + chat()
OPTIONS = """
import socket
wanted = ("SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
found = []
for peer in ctx.master.addons.get("ollama_gate").connections:
    for io in peer.handler.transports.values():
        own = io.writer.get_extra_info("socket")
        levels = [socket.SOL_SOCKET] + [socket.IPPROTO_TCP] * 4
        found.append(tuple(own.getsockopt(level, getattr(socket, name)) for level, name in zip(levels, wanted)))
result = found
"""


@contextmanager
def lost(port: int) -> Iterator[None]:
    """Nothing arrives that comes from, or goes to, this port, as if the cable were cut."""
    iptables = shutil.which("iptables", path=f"{os.environ['PATH']}:/usr/sbin")
    rules = [["INPUT", "-i", "lo", "-p", "tcp", f"--{side}", str(port), "-j", "DROP"] for side in ("sport", "dport")]
    if not iptables or subprocess.run([iptables, "-w", "-I", *rules[0]], capture_output=True, check=False).returncode:
        pytest.skip("packets can't be dropped here")
    try:
        subprocess.run([iptables, "-w", "-I", *rules[1]], check=True)
        yield
    finally:
        for rule in rules:
            subprocess.run([iptables, "-w", "-D", *rule], capture_output=True, check=False)


def test_the_kernel_asks_whether_they_are_there(upstream: Upstream) -> None:
    upstream.hold()
    with Controlled(upstream.url) as gate, Line.to(gate.port, HELD) as line:
        line.read_until(b'"done":false}')
        assert gate.do(OPTIONS) == repr([(1, 30, 10, 3, 50_000)] * 2), "of the client, and of Ollama"
        upstream.go_on()
    with Controlled(upstream.url, "--set", "ollama_keepalive_idle=0") as gate, Line.to(gate.port, HELD) as line:
        line.read_until(b"0\r\n\r\n")
        assert gate.do(OPTIONS).startswith("[(0, ")


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [False, True], ids=["waits", "gets tokens"])
def test_a_client_that_vanishes_frees_its_place(upstream: Upstream, tmp_path: Path, tokens: bool) -> None:
    """While nothing comes of its model, or while tokens are on their way to it."""
    (file := tmp_path / "keys.toml").write_text(entry("one", concurrent_requests=1))
    file.chmod(0o600)
    data = head("POST", "/api/chat", bearer("one"), f"Content-Length: {len(chat())}") + chat()
    upstream.hold()
    args = ("--set", "ollama_access_log=-", *SHORT)
    env = {"OLLAMA_KEYS_FILE": str(file)}
    with Gate(upstream.url, *args, key=None, env=env) as gate, Line.to(gate.port, data) as line:
        line.read_until(b'"done":false}')
        assert ask(gate.port, "GET", "/api/tags", bearer("one")).status == 429
        with lost(line.socket.getsockname()[1]):
            if tokens:
                upstream.go_on()
            wait_until(lambda: not upstream.open_connections, "the request to end upstream")
            wait_until(lambda: ask(gate.port, "GET", "/api/tags", bearer("one")).status == 200, "the place to be free")
        if not tokens:
            assert "client left" in [one.get("reason") for one in log_lines(gate)]
        line.close()
        assert_sound(gate)


@pytest.mark.slow
def test_an_ollama_that_vanishes(upstream: Upstream) -> None:
    ollama, ports = Scripted(), list[int]()

    def play(line: Line) -> None:
        ports.append(line.socket.getpeername()[1])
        line.head()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        line.send(b'f\r\n{"done":false}\n\r\n')
        line.socket.settimeout(None)
        line.socket.recv(1)

    with ollama.plays(play), Gate(ollama.url, *SHORT) as gate, Line.to(gate.port, HELD) as line:
        line.read_until(b'"done":false}')
        with lost(ports[0]):
            assert b"0\r\n\r\n" not in line.read_all(), "the answer ends, and not as a whole one"
        gate.find("upstream broken")


@pytest.mark.slow
def test_who_is_there_may_be_silent_and_take_nothing(upstream: Upstream) -> None:
    """For longer than it takes to notice that somebody is not: a model that thinks, and a client that does not read."""
    released = threading.Event()
    ollama, size, uploaded = Scripted(), 16 << 20, 2 << 20

    def play(line: Line) -> None:
        asked = line.head()
        if b"/api/tags" in asked:
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        elif b"/api/chat" in asked:
            released.wait(PATIENCE)
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        else:
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            released.wait(PATIENCE)
            while len(line.received) < uploaded:
                line.received += line.socket.recv(1 << 16)
            line.send(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    with ollama.plays(play), Gate(ollama.url, *SHORT) as gate, ExitStack() as stack:
        thinks = stack.enter_context(Line.to(gate.port, HELD))
        full = stack.enter_context(Line.to(gate.port, head("GET", "/api/tags", BEARER)))
        blob = head("POST", "/api/blobs/sha256:x", BEARER, f"Content-Length: {uploaded}")
        uploads = stack.enter_context(Line.to(gate.port, blob + bytes(uploaded)))
        time.sleep(2 * VANISHED_AFTER)
        released.set()
        assert thinks.read_response().json == {}
        assert len(full.read_response().body) == size
        assert uploads.read_response().status == 201
        assert_sound(gate)
