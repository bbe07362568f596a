"""Other programs that tests run: proxies, Redis, and whatever checks a file of ours."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.base import PATIENCE, free_port, wait_until
from tests.harness.wire import Line, Wire


def tool(name: str) -> str:
    """Where a program is; without it the test is skipped."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin")
    return found or pytest.skip(f"no {name} on this machine")


def run(*command: str | Path) -> str:
    """What a program says; it must be content."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE * 3)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@contextmanager
def proxy(
    command: Sequence[str], port: int, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that listens on that port, until the block ends."""
    with (
        (folder / "out").open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=env) as process,
    ):
        try:
            wait_until(lambda: process.poll() is not None or listens(port), f"{command[0]} to listen")
            assert process.poll() is None, (folder / "out").read_text()
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE)


def listens(port: int) -> bool:
    try:
        Line.to(port).close()
    except ConnectionRefusedError:
        return False
    return True


class Redis:
    """A redis-server of our own, on the loopback, without a disk."""

    def __init__(self, cert: Path | None = None) -> None:
        """`cert` has a certificate and its key: it then speaks TLS alone."""
        self.port = self.plain = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._tls: tuple[str, ...] = ()
        if cert:
            self.plain = free_port()
            files = ("--tls-cert-file", str(cert), "--tls-key-file", str(cert), "--tls-ca-cert-file", str(cert))
            self._tls = ("--tls-port", str(self.port), *files, "--tls-auth-clients", "no")
        self.start()

    def start(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.plain), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
                *("--enable-protected-configs", "local", *self._tls, *args),
            ],
            stdout=subprocess.DEVNULL,
        )
        wait_until(self.answers, "redis-server")

    def ask(self, *words: str) -> bytes:
        """What it says to a command."""
        parts = [b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words]
        quit_now = b"*1\r\n$4\r\nQUIT\r\n"
        with Wire(self.port, b"*%d\r\n" % len(parts) + b"".join(parts) + quit_now) as wire:
            return wire.read_all().removesuffix(b"+OK\r\n")

    def answers(self) -> bool:
        try:
            with Wire(self.plain, b"PING\r\n") as wire:
                return wire.read_until(b"\r\n") == b"+PONG\r\n"
        except OSError:
            return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
