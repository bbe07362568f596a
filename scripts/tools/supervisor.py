"""python scripts/tools supervisor COUNT COMMAND [ARGUMENTS]: run COUNT gates that share one port, each in a process.

The kernel distributes connections among them (SO_REUSEPORT). A gate that exits is started again, after a pause that
doubles while it keeps exiting; a gate that can't start ends all of them, with its status. SIGTERM and SIGINT drain all
of them, a second signal ends them at once, and SIGHUP is passed on.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress

from ollama_auth.process import has_terminal

from .serve import GUIDANCE
from .terminal import say

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a restart."""
STABLE = 60.0
"""Seconds. A gate that ran for longer is restarted after FIRST_PAUSE; a first run that fails sooner ends all gates.

Not less: a broken configuration may take 20 s to be noticed on a busy machine.
"""


class Supervisor:
    """Keeps `count` processes of one command running."""

    def __init__(self, count: int, command: Sequence[str]) -> None:
        self.count = count
        self.command = command
        self.running: dict[int, asyncio.subprocess.Process] = {}
        self.stopping = asyncio.Event()
        self.status = 0
        self.guidance = os.environ.get(GUIDANCE, "")
        self.metrics = tempfile.mkdtemp(prefix="ollama-auth-")
        """The directory in which each gate keeps its metrics, and reads those of the others."""

    async def run(self) -> int:
        """Run until a signal to stop, or until one can't start. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN or not has_terminal()
        loop.add_signal_handler(signal.SIGHUP, self.hang_up, stays)
        try:
            await asyncio.gather(*(self.keep(worker) for worker in range(1, self.count + 1)))
        finally:
            shutil.rmtree(self.metrics, ignore_errors=True)
        return self.status

    async def keep(self, worker: int) -> None:
        """Run one gate, and start it again whenever it exits."""
        pause, first = FIRST_PAUSE, True
        while not self.stopping.is_set():
            begun = time.monotonic()
            status = await self.start(worker)
            ran = time.monotonic() - begun
            if self.stopping.is_set():
                self.status = self.status or max(status, 0)
            elif first and status > 0 and ran < STABLE:
                say(f"a gate ended with status {status} before it had begun, so all of them end")
                self.status = status
                self.stop()
            else:
                pause = FIRST_PAUSE if ran > STABLE else min(pause * 2, LONGEST_PAUSE)
                say(f"gate {worker} ended by itself (status {status}); it is started again in {pause:g} s")
                await self.pause(pause)
            first = False

    async def start(self, worker: int) -> int:
        """Run one gate until it exits. Returns its status."""
        environment = os.environ | {
            "OLLAMA_WORKERS": str(self.count),
            "OLLAMA_WORKER": str(worker),
            "PROMETHEUS_MULTIPROC_DIR": self.metrics,
            GUIDANCE: self.guidance if worker == 1 else "",
        }
        self.guidance = self.guidance if worker != 1 else ""  # Said once, also where the first is started again.
        # In a process group of its own: otherwise Ctrl-C would reach it twice, from the terminal and from this process.
        process = await asyncio.create_subprocess_exec(*self.command, env=environment, process_group=0)
        self.running[worker] = process
        if self.stopping.is_set():  # A signal came while it was starting.
            process.terminate()
        try:
            return await process.wait()
        finally:
            del self.running[worker]
            mark_dead(self.metrics, process.pid)

    async def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until a signal to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()

    def stop(self) -> None:
        """Have all gates drain; called a second time, they end at once."""
        self.stopping.set()
        self.forward(signal.SIGTERM)

    def hang_up(self, stays: bool) -> None:
        """Have all gates reload their keys; end them if the terminal of the start was closed."""
        if stays or has_terminal():
            self.forward(signal.SIGHUP)
        else:
            self.stop()

    def forward(self, number: int) -> None:
        """Send a signal to all gates."""
        for process in self.running.values():
            process.send_signal(number)


def mark_dead(folder: str, pid: int) -> None:
    """Drop the gauges of a process that exited, such as its open connections; its counters stay."""
    try:
        from prometheus_client.multiprocess import mark_process_dead
    except ImportError:
        return
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(asyncio.run(Supervisor(int(sys.argv[1]), sys.argv[2:]).run()))
