"""The container's program: becomes mitmdump with the gate, and refuses to start if no key is set.

`entrypoint --healthy` is the container's health check. Its status is 0 if the gate answers at all, with any status.
"""

import io
import json
import os
import re
import runpy
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from ollama_auth.clock import utc

from . import launch
from .serve import SELF_CHECK, USAGE_DB, check_start, gate_command
from .terminal import ToolError, say

CLOCK = re.compile(r"\[\d\d:\d\d:\d\d\.\d{3}\] ")
"""The beginning of mitmproxy's log lines."""
COMMAND_LINE = Path("/proc/1/cmdline")
DATA = Path("/data")
"""Where a volume keeps the ledger."""
TIMEOUT = 4.0
"""Seconds; one less than Docker waits for the health check (see Dockerfile)."""


def arguments_of(command_line: bytes) -> list[str]:
    """The arguments of this tool in a command line as /proc/PID/cmdline has it (proc_pid_cmdline(5))."""
    words = [os.fsdecode(word) for word in command_line.split(b"\0")[:-1]]
    names = [Path(word).name for word in words]
    return words[names.index(Path(__file__).stem) + 1 :] if Path(__file__).stem in names else []


def healthy(arguments: Sequence[str]) -> bool:
    """Whether a gate with these arguments answers. With TLS it answers plain HTTP, too, with an error."""
    address = urlsplit(launch.read(arguments).address)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=TIMEOUT)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True


class JsonLines(io.TextIOBase):
    """A standard output that prints each line as JSON. The access log is JSON already and writes to the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = ""

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            fields = {"time": utc(time.time()), "message": CLOCK.sub("", line, count=1)}
            message = json.dumps(fields, separators=(",", ":"))
            os.write(self._descriptor, f"{message}\n".encode())
        return len(text)


def prepare_for_pid_1() -> None:
    """Handle the signals that the kernel treats differently for process 1 (signal(7), wait(2)).

    It drops signals without a handler: a SIGTERM before mitmdump sets its handler would have no effect until Docker
    kills the container. And it makes orphans our children: with SIGCHLD ignored they leave no zombies.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def run(arguments: Sequence[str]) -> None:
    """Become the gate. Raises ToolError."""
    launched = launch.read(arguments)
    if launched.workers > 1:
        raise ToolError("a container runs one gate: start more containers in place of --workers")
    check_start(launched)
    os.environ[SELF_CHECK] = secrets.token_hex(8)
    log = launched.options.ollama_access_log
    if log in (None, "-"):
        sys.stdout = JsonLines(sys.stdout.fileno())
    if not launched.is_set("ollama_usage_db", os.environ) and DATA.is_mount():
        if os.access(DATA, os.W_OK):
            os.environ[USAGE_DB] = str(DATA / "usage.db")
        else:
            say(f"user {os.getuid()} may not write {DATA}, so the ledger is kept in memory: let this user write it")
    _, program, *rest = gate_command(launched.upstream(os.environ), launched)
    prepare_for_pid_1()
    sys.argv = [program, *rest, *(["--set", "ollama_access_log=-"] if log is None else [])]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["--healthy"]:
            sys.exit(not healthy(arguments_of(COMMAND_LINE.read_bytes())))
        run(sys.argv[1:])
    except ToolError as error:
        say(str(error))
        sys.exit(1)
