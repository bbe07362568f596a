"""Answers that take time to make are made in a thread, once for all who ask, and not again before that has paid off."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

SHARE = 0.005
"""Of one processor: an answer that took a second is given again for 200 seconds."""
FRESH = 1.0
"""Seconds for which every answer is given again."""
MOST = 100
"""Answers that are kept."""


def _timed[T](make: Callable[[], T]) -> tuple[T, float]:
    """What a function gives, and the processor time that it took in seconds."""
    begun = time.thread_time()
    return make(), time.thread_time() - begun


class Cache:
    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, tuple[float, object]] = OrderedDict()
        """(when it has to be made again, the answer)"""
        self._making: dict[Hashable, asyncio.Task[Any]] = {}

    async def get[T](self, name: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` gives, or gave not long ago. Raises what it raises."""
        until, answer = self._known.get(name, (0.0, None))
        if time.monotonic() < until:
            return answer  # type: ignore[return-value]
        task = self._making.get(name)
        if task is None:
            task = self._making[name] = asyncio.create_task(self._make(name, make))
            task.add_done_callback(lambda _: self._making.pop(name))
        result: T = await asyncio.shield(task)
        return result

    async def _make[T](self, name: Hashable, make: Callable[[], T]) -> T:
        answer, took = await asyncio.to_thread(_timed, make)
        self._known[name] = time.monotonic() + max(FRESH, took / SHARE), answer
        self._known.move_to_end(name)
        if len(self._known) > MOST:
            self._known.popitem(last=False)
        return answer
