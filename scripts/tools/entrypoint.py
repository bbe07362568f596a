"""The container's program: is mitmdump with the gate, which refuses to start where no key is set.

`entrypoint --healthy` is its health check: 0 where the gate that the container runs answers, whatever it says.
"""

import io
import json
import os
import re
import runpy
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from .serve import Problem, endpoint, gate_command, split

LOG = "ollama_access_log"
CLOCK = re.compile(r"\[\d\d:\d\d:\d\d\.\d{3}\] ")
"""What mitmproxy begins its lines with."""
COMMAND_LINE = Path("/proc/1/cmdline")
PATIENCE = 4.0
"""Seconds; the image's health check has one more."""


def arguments_of(command_line: bytes) -> list[str]:
    """What follows this tool's name in the command line of a process, as the kernel writes it."""
    words = [os.fsdecode(word) for word in command_line.split(b"\0")[:-1]]
    names = [Path(word).name for word in words]
    return words[names.index(Path(__file__).stem) + 1 :] if Path(__file__).stem in names else []


def healthy(arguments: Sequence[str]) -> bool:
    """Something speaks HTTP where a gate with these arguments listens. One with TLS says so in plain text, too."""
    address = urlsplit(split(arguments).address)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True


class JsonLines(io.TextIOBase):
    """Standard output that makes JSON of what is printed; the access log, which is JSON already, writes beneath it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = ""

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            message = json.dumps({"time": now, "message": CLOCK.sub("", line, count=1)}, separators=(",", ":"))
            os.write(self._descriptor, f"{message}\n".encode())
        return len(text)


def be_the_first_process() -> None:
    """The kernel has special rules for process 1, which mitmdump knows nothing of (signal(7), wait(2)).

    A signal that it has no handler for is lost: a stop that comes before mitmdump set its own would wait to be killed.
    Orphans become its children: nobody waits for them, and where SIGCHLD is ignored they leave without a trace.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def run(arguments: Sequence[str]) -> None:
    found = split(arguments)
    if found.workers > 1:
        raise Problem("a container runs one gate: start more containers in place of --workers")
    log = [] if LOG in found.options else ["--set", f"{LOG}=-"]
    if found.options.get(LOG, "-") == "-":
        sys.stdout = JsonLines(sys.stdout.fileno())
    _, *command = gate_command(endpoint(os.environ.get("OLLAMA_ENDPOINT")), found)
    be_the_first_process()
    sys.argv = [*command, *log]
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["--healthy"]:
            sys.exit(not healthy(arguments_of(COMMAND_LINE.read_bytes())))
        run(sys.argv[1:])
    except Problem as problem:
        sys.exit(f"ollama-auth: {problem}")
