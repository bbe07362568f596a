"""Programs of mitmproxy, forked from a server process that has imported them once.

A start takes a second of processor time otherwise, and most of that is the import of mitmproxy. The child reads its
command line, environment and scripts as a program that was executed would; only imports are shared: mitmproxy's, and
those of this checkout's package where the command names its auth.py. Its command line in /proc is the server's.
scripts/serve, which executes the gate in its place, can be forked too.

The server (this file, run as a program) reads a JSON object per line and answers with a process id. It is not the
test's child that runs then, so a process between the two waits for it and leaves its exit status in a file.
"""

import atexit
import functools
import gc
import importlib
import itertools
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ADDONS = Path(__file__).resolve().parents[2] / "addons"
LATE = ("h2.connection", "limits.aio.storage", "limits.aio.strategies", "prometheus_client")
"""Imported by the package or by mitmproxy when they are first needed."""
PROGRAMS = {"mitmdump": "mitmproxy.tools.dump", "mitmweb": "mitmproxy.tools.web.master"}
"""What can be forked, and the module that a server imports for it."""


class Forked:
    """A forked program, as far as Gate uses subprocess.Popen."""

    def __init__(self, pid: int, status: Path) -> None:
        self.pid = pid
        self._status = status

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return int(self._status.read_text()) if self._status.exists() else None

    def wait(self, timeout: float) -> int:
        """The exit status. Raises TimeoutExpired."""
        until = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.002)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # It may have ended, and its status not be written yet.
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Server:
    """A server for one of PROGRAMS."""

    def __init__(self, program: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="forked-"))
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, PROGRAMS[program]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.stop)

    def start(self, command: list[str], env: dict[str, str], cwd: str, out: Path, err: Path | None = None) -> Forked:
        """Fork; `command` begins with the path of the program, or of a Python file or folder that runs it.

        Its output is appended to `out`; `err` takes standard error apart.
        """
        assert self._process.stdin
        assert self._process.stdout
        status = self._folder / str(next(self._numbers))
        order = {
            "command": command,
            "env": env,
            "cwd": cwd,
            "outputs": [str(out), str(err or out)],
            "status": str(status),
        }
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            pid = int(self._process.stdout.readline())
        return Forked(pid, status)

    def stop(self) -> None:
        self._process.communicate()
        shutil.rmtree(self._folder)


_servers: dict[str, Server] = {}


def server(program: str) -> Server:
    """The one of this process, started at the first use."""
    if program not in _servers:
        _servers[program] = Server(program)
    return _servers[program]


def of_checkout(name: str) -> bool:
    """Whether the module of this name is ours, and would be another where another checkout is run."""
    return name.partition(".")[0] in ("ollama_auth", "scripts")


def import_package() -> dict[str, Any]:
    """Import every module of this checkout's package; take them out of sys.modules again."""
    sys.path.insert(0, str(ADDONS))
    for path in sorted(ADDONS.glob("ollama_auth/**/*.py")):
        importlib.import_module(".".join(path.relative_to(ADDONS).with_suffix("").parts).removesuffix(".__init__"))
    del sys.path[0]
    sys.modules["ollama_auth.ollama_api.strict_json"].prepare()
    return {name: sys.modules.pop(name) for name in list(sys.modules) if of_checkout(name)}


package: dict[str, Any] = {}
"""What import_package returned, in a server and its children."""


def serve(module: str) -> None:
    for name in ("mitmproxy.tools.main", module, *LATE):
        importlib.import_module(name)
    package.update(import_package())
    # Each start reads the same key twice, and OpenSSL would check its primes each time.
    serialization = sys.modules["mitmproxy.certs"].serialization
    serialization.load_pem_private_key = functools.partial(
        serialization.load_pem_private_key, unsafe_skip_rsa_key_validation=True
    )
    gc.freeze()  # A child's collections would touch, and so copy, every page of them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The processes between are nobody's to wait for.
    for line in sys.stdin:
        if not os.fork():
            run(json.loads(line))


def run(order: dict[str, Any]) -> None:
    """Fork again: the child becomes the program, the parent waits for it. Does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if not pid:
        become(**order)
    os.write(1, b"%d\n" % pid)
    for number in range(3):
        os.close(number)
    _, status = os.waitpid(pid, 0)
    part = Path(order["status"] + ".part")
    part.write_text(str(os.waitstatus_to_exitcode(status)))
    part.rename(order["status"])
    os._exit(0)


class Executed(BaseException):
    """A forked program calls os.execve, with these arguments: what it would become is run in its process instead."""


def execute(path: str, command: list[str], env: dict[str, str]) -> None:
    """Stand in for os.execve."""
    raise Executed(command, env)


def become(command: list[str], env: dict[str, str], cwd: str, outputs: list[str], status: str) -> None:
    """Be that program. Does not return."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, out in enumerate(outputs, 1):
        os.dup2(os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), number)
    os.chdir(cwd)
    sys.stdin = open(0)  # noqa: SIM115
    os.execve = execute  # type: ignore[assignment]
    path = sys.path.copy()
    while True:
        os.environ.clear()
        os.environ.update(env)
        try:
            run_program(command)
        except Executed as executed:
            command, env = executed.args
        for name in list(filter(of_checkout, sys.modules)):
            del sys.modules[name]
        sys.path[:] = path


def run_program(command: list[str]) -> None:
    """Run it in this process: a program of mitmproxy, or a file or folder of Python. Raises SystemExit or Executed."""
    if command[0] == sys.executable:
        command = command[1:]
    if str(ADDONS / "auth.py") in command:
        sys.modules.update(package)
    sys.argv = command.copy()
    sys.path.insert(0, str(Path(command[0]).parent))
    if command[0].endswith(".py") or Path(command[0]).is_dir():
        runpy.run_path(command[0], run_name="__main__")
        sys.exit()
    sys.exit(getattr(sys.modules["mitmproxy.tools.main"], Path(command[0]).name)())


if __name__ == "__main__":
    serve(sys.argv[1])
