"""supervisor.py COUNT COMMAND [ARGUMENTS]: so many gates that share one port, each a process of its own.

The kernel shares connections out among them (SO_REUSEPORT). One that ends by itself is started again, after a pause
that doubles while it keeps ending; one that can't even start ends all of them with its status. SIGTERM and SIGINT have
all of them end what they have begun, a second one ends them at once, and SIGHUP is passed on.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence

STARTING = 10.0
"""Seconds in which an exit of the first start means that it can't start at all."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
LIVED = 60.0
"""Seconds after which a gate that ends is as good as new."""


def say(text: str) -> None:
    print(f"ollama-auth: {text}", file=sys.stderr, flush=True)


class Supervisor:
    """Keeps so many processes of one command running."""

    def __init__(self, count: int, command: Sequence[str]) -> None:
        self.count = count
        self.command = command
        self.running: dict[int, asyncio.subprocess.Process] = {}
        self.stopping = asyncio.Event()
        self.status = 0
        self.metrics = tempfile.mkdtemp(prefix="ollama-auth-")
        """Where each of them keeps its metrics, and all read those of the others."""

    async def run(self) -> int:
        """Until told to stop, or until one can't start; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.tell, signal.SIGHUP)
        try:
            await asyncio.gather(*(self.keep(worker) for worker in range(1, self.count + 1)))
        finally:
            shutil.rmtree(self.metrics, ignore_errors=True)
        return self.status

    async def keep(self, worker: int) -> None:
        """Start one of them, again and again."""
        pause, first = FIRST_PAUSE, True
        while not self.stopping.is_set():
            begun = time.monotonic()
            status = await self.start(worker)
            lived = time.monotonic() - begun
            if self.stopping.is_set():
                self.status = self.status or max(status, 0)
            elif first and status > 0 and lived < STARTING:
                say(f"a gate ended with status {status} before it had begun, so all of them end")
                self.status = status
                self.stop()
            else:
                pause = FIRST_PAUSE if lived > LIVED else min(pause * 2, LONGEST_PAUSE)
                say(f"gate {worker} ended by itself (status {status}); it is started again in {pause:.0f} s")
                await self.rest(pause)
            first = False

    async def start(self, worker: int) -> int:
        """Run one to its end; its status."""
        environment = os.environ | {
            "OLLAMA_WORKERS": str(self.count),
            "OLLAMA_WORKER": str(worker),
            "PROMETHEUS_MULTIPROC_DIR": self.metrics,
        }
        # In a process group of its own: a Ctrl-C reaches it once, by way of this process.
        process = await asyncio.create_subprocess_exec(*self.command, env=environment, process_group=0)
        self.running[worker] = process
        if self.stopping.is_set():  # Meanwhile.
            process.terminate()
        try:
            return await process.wait()
        finally:
            del self.running[worker]
            forget(self.metrics, process.pid)

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            pass

    def stop(self) -> None:
        """All of them end what they have begun; told twice, they end at once."""
        self.stopping.set()
        self.tell(signal.SIGTERM)

    def tell(self, number: int) -> None:
        """Pass a signal on to all of them."""
        for process in self.running.values():
            process.send_signal(number)


def forget(folder: str, pid: int) -> None:
    """What that process had under way is no more; what it counted still counts."""
    try:
        from prometheus_client.multiprocess import mark_process_dead
    except ImportError:
        return
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(asyncio.run(Supervisor(int(sys.argv[1]), sys.argv[2:]).run()))
