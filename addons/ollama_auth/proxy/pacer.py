"""Let what arrives at once begin a little at a time, so that what is under way has its turns of the event loop between.

To serve a connection, or a request, begins with milliseconds of work in several turns. If a hundred did it in the same
turns, each token of the streams that run would wait for all of them.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

SECONDS = 0.01
"""Of processor time, after which the next begins in any case: while others have much to do, turns are long."""
MAX_HELD = 16 << 20
"""Bytes that may be kept for those that wait; with more, the first has its turn at once."""


class Pacer:
    """Lets so many begin in so many turns of the event loop."""

    def __init__(self, many: int, turns: int) -> None:
        self._many, self._every = many, turns
        self._waiting = deque[Callable[[], None]]()
        self.held = 0
        """Bytes that are kept for those that wait."""
        self._turns = 0
        """How many are left until so many more may begin; 0 if nothing has begun lately."""
        self._begun = 0
        self._last = 0.0
        """When the last one began, in seconds of the processor."""

    def take(self) -> bool:
        """Begin now; False if there is somebody to wait for."""
        if not self._turns:
            self._turns, self._begun = self._every, 0
            asyncio.get_running_loop().call_soon(self._turn)
        if self._waiting or self._begun >= self._many:
            return False
        self._begun += 1
        self._last = time.thread_time()
        return True

    def begin(self, function: Callable[[], None], most_waiting: int) -> None:
        """Call the function when it is its turn, which may be now. It must not raise.

        If more than so many wait, the first has its turn at once.
        """
        if self.take():
            function()
            return
        self._waiting.append(function)
        if len(self._waiting) > most_waiting or self.held > MAX_HELD:
            self._waiting.popleft()()

    def turn(self) -> asyncio.Future[None]:
        """Wait, in a task."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(lambda: None if waiter.done() else waiter.set_result(None))
        return waiter

    def _turn(self) -> None:
        self._turns -= 1
        due = max(int((time.thread_time() - self._last) / SECONDS), 0 if self._turns else self._many)
        if due and self._waiting:
            self._turns, self._begun, self._last = self._every, 0, time.thread_time()
        if self._turns:
            asyncio.get_running_loop().call_soon(self._turn)
        for _ in range(min(due, len(self._waiting))):
            self._begun += 1
            self._waiting.popleft()()
