"""Starts of scripts/serve, its workers, the image's program and mitmdump: open and said so, or one line and an end."""

import os
import pty
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.harness.base import BEARER, KEY, PATIENCE, ROOT, free_port, wait_until
from tests.harness.certificates import key_and_certificate
from tests.harness.fork_server import server
from tests.harness.gate import Gate, certificate_authority
from tests.harness.tools import CLEAN, TOOLS
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory, in which mitmproxy needs to make nothing."""
    shutil.copytree(certificate_authority(), tmp_path / ".mitmproxy")
    return tmp_path


def environment(home: Path, upstream: str, **more: str) -> dict[str, str]:
    chosen = {"HOME": str(home), "OLLAMA_API_KEY": KEY, "OLLAMA_ENDPOINT": upstream, "OLLAMA_METRICS_LISTEN": ""}
    return CLEAN | chosen | more


def said_by(tool: str, home: Path, upstream: str, *arguments: str, **more: str) -> str:
    """What a tool says that does not start."""
    out = home / "out"
    out.write_text("")
    process = server("mitmdump").start([TOOLS, tool, *arguments], environment(home, upstream, **more), str(home), out)
    assert process.wait(60) == 1, out.read_text()
    lines = [line for line in out.read_text().splitlines(keepends=True) if "arn" not in line]  # Of Python, forked.
    return "".join(lines)


FAULTS = {
    "port 80810 is none": ("--listen-port", "80810"),
    "port 0 is none": ("--listen-port", "0"),
    "port {taken} is taken": ("--listen-port", "{taken}"),
    "192.0.2.1 is no address of this machine": ("--listen-host", "192.0.2.1"),
    "nothing.pem can't be read (No such file": ("--certs", "nothing.pem"),
    "cert.pem has no certificate with its key": ("--certs", "cert.pem"),
    "did you mean --listen-port?": ("--listen-prot", "8081"),
    "did you mean ollama_max_body=": ("--set", "ollama_max_boddy=1m"),
    "did you mean connection_strategy=": ("--set", "conection_strategy=lazy"),
    "begins or ends with a quote": ("--set", f"ollama_api_key='{KEY}'"),
    "can't listen on 127.0.0.1:{taken}": ("--set", "ollama_metrics_listen=127.0.0.1:{taken}"),
    "set HOME, or --set confdir": ("--set", "confdir=/proc/nowhere"),
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["serve", "entrypoint"])
def test_a_start_that_can_not_be_is_one_line(home: Path, upstream: Upstream, tool: str) -> None:
    (home / "cert.pem").write_bytes(key_and_certificate().partition(b"-----BEGIN CERT")[0])
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        for fault, arguments in FAULTS.items():
            words = [word.replace("{taken}", taken) for word in arguments]
            chosen = [] if words[0] == "--listen-port" else ["--listen-port", str(free_port())]
            said = said_by(tool, home, upstream.url, *chosen, *words)
            assert fault.replace("{taken}", taken) in said, said
            assert said.count("\n") == 1, said
            assert KEY not in said


@pytest.mark.parametrize("tool", ["serve", "entrypoint"])
@pytest.mark.parametrize("empty", [{"OLLAMA_API_KEY": ""}, {"OLLAMA_API_KEY": " ", "OLLAMA_API_KEY_FILE": ""}])
def test_an_empty_key_is_none(home: Path, upstream: Upstream, tool: str, empty: dict[str, str]) -> None:
    """The keys file that scripts/serve keeps for the console is no other source."""
    said = said_by(tool, home, upstream.url, "--listen-port", str(free_port()), **empty)
    assert "OLLAMA_API_KEY: the key is empty" in said
    assert not (home / "keys.toml").exists()


def test_it_is_open_when_it_says_so(home: Path, upstream: Upstream) -> None:
    """The address said is the one that is listened on; the gate's own question is in no log."""
    port, out = free_port(), home / "out"
    out.touch()
    command = [TOOLS, "serve", "--listen-host", "::", "--listen-port", str(port)]
    process = server("mitmdump").start(command, environment(home, upstream.url), str(home), out)
    try:
        wait_until(lambda: "is open" in out.read_text() or process.poll() is not None, "it to be open", 60)
        with closing(socket.create_connection(("::1", port))) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 401")
        said = wait_until(lambda: " 401 " in out.read_text() and out.read_text(), "the line in the log")
        guarding, warning, opened, curl, _, refused = str(said).splitlines()
        assert f"listening on [::]:{port}" in guarding
        assert "on all addresses without TLS" in warning
        assert opened.startswith(f"ollama-auth: http://[::1]:{port} is open")
        assert f"http://[::1]:{port}/" in curl
        assert " GET / 401 " in refused
    finally:
        process.kill()


@pytest.fixture
def emptied(tmp_path: Path) -> Path:
    """A checkout whose auth.py is empty."""
    folder = tmp_path / "checkout"
    for name in ("scripts", "addons"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "addons" / "auth.py").write_text("")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("words", [("serve",), ("serve", "--workers", "2"), ("entrypoint",)], ids=" ".join)
def test_a_start_that_would_let_strangers_in_ends(
    home: Path, upstream: Upstream, emptied: Path, words: tuple[str, ...]
) -> None:
    command = [sys.executable, str(emptied / "scripts" / "tools"), *words, "--listen-host", "127.0.0.1"]
    env = environment(home, upstream.url)
    done = subprocess.run(
        [*command, "-p", str(free_port())], env=env, cwd=home, capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 1
    assert "strangers were let in (status 200)" in done.stderr
    assert "is open" not in done.stdout


def test_nobody_gets_in_while_it_starts(upstream: Upstream) -> None:
    """The listener may be up before auth.py is loaded."""
    port, ends = free_port(), threading.Event()
    answers: list[bytes] = []

    def hammer() -> None:
        while not ends.is_set():
            with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), PATIENCE)) as client:
                client.sendall(b"GET /api/tags HTTP/1.1\r\nHost: x\r\n\r\n")
                answers.append(client.recv(100)[:12])

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    with upstream.untouched():
        for thread in threads:
            thread.start()
        try:
            with Gate(upstream.url, port=port):
                seen = len(answers)
                wait_until(lambda: len(answers) > seen + 8, "answers")
                ends.set()
                for thread in threads:
                    thread.join()
        finally:
            ends.set()
    assert set(answers) <= {b"HTTP/1.1 401", b"HTTP/1.1 503", b""}
    assert b"HTTP/1.1 401" in answers


@pytest.mark.slow
def test_mitmdump_says_which_port_it_took(home: Path, upstream: Upstream) -> None:
    host = ".".join(map(str, [127, *secrets.SystemRandom().choices(range(1, 255), k=3)]))  # Others take these ports.
    words = ("--mode", f"reverse:{upstream.url}", "--listen-host", host, "-s", str(ROOT / "addons" / "auth.py"))
    for program, more in {"mitmdump": (), "mitmweb": ("--no-web-open-browser", "--web-host", host)}.items():
        out = home / program
        out.touch()
        command = [str(Path(sys.executable).parent / program), *words, *more]
        process = server(program).start(command, environment(home, upstream.url), str(home), out)
        try:
            wait_until(lambda out=out: "listening on" in out.read_text(), program, 60)
            assert f"listening on {host}:8080 (mitmproxy's port; that of the Caddyfile is 8081: " in out.read_text()
            assert program == "mitmdump" or f"http://{host}:8082/" in out.read_text()
        finally:
            process.kill()
            wait_until(lambda process=process: process.poll() is not None, "it to end")


# Signals.


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_ends_with_its_terminal_and_reloads_while_there_is_one(home: Path, upstream: Upstream, workers: str) -> None:
    port, screen = free_port(), b""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(home)
        command = [sys.executable, TOOLS, "serve", "--listen-host", "127.0.0.1", "-p", str(port), "--workers", workers]
        os.execve(sys.executable, command, environment(home, upstream.url))  # noqa: S606, a child of a terminal
    try:
        until = time.monotonic() + 60
        while b"curl -N" not in screen and time.monotonic() < until:
            if select.select([terminal], [], [], 1)[0]:
                screen += os.read(terminal, 4096)
        os.kill(pid, signal.SIGHUP)
        assert ask(port, "GET", "/api/version", BEARER).status == 200
    finally:
        os.close(terminal)
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "it to end", 60)
    with pytest.raises(ConnectionRefusedError):
        ask(port, "GET", "/")


def moments(home: Path, upstream: str) -> Iterator[subprocess.Popen[str]]:
    """Starts, each interrupted a little later than the one before; SIGINT is blocked at first, as by bootstrap.py."""
    for tenths in (0, 1, 2, 4, 6, 9, 12, 15, 20, 30):
        command = [sys.executable, TOOLS, "serve", "--demo", "--listen-host", "127.0.0.1", "-p", str(free_port())]
        process = subprocess.Popen(
            command,
            cwd=home,
            env=environment(home, upstream),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}),
        )
        time.sleep(tenths / 10)
        process.send_signal(signal.SIGINT)
        yield process


@pytest.mark.slow
def test_an_interrupt_at_any_moment_is_at_most_one_line(home: Path, upstream: Upstream) -> None:
    for process in moments(home, upstream.url):
        said, _ = process.communicate(timeout=60)
        ours = [line for line in said.splitlines() if line and "guarding" not in line and "curl -N" not in line]
        assert set(ours) <= {"ollama-auth: interrupted"} or "is open" in said, said
        assert "Traceback" not in said
        assert process.returncode in (0, 130)
