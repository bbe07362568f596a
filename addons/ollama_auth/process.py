"""When Python looks for objects that only hold each other: in small steps while requests run, and else at leisure.

By default it walks over all that is new whenever 20,000 objects more are there: with a hundred chats that begin at
once, that was most of what the latest of their tokens were late by.
"""

import asyncio
import gc
from collections.abc import Callable

from . import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

STEP = 1_000
"""Objects that are new at a step, and looked over at once."""
STEPS = 100
"""Steps until all that is new since the last such time is looked over, if no leisure comes before."""
ENOUGH = 10
"""Steps that make it worth while when nothing is to be done."""
FULL = 5
"""How often all that is new is looked over until all that is old is, too, at leisure."""
LOOK = 0.1
"""Seconds between two looks for leisure."""


def freeze() -> None:
    """What is there at the start stays: no need to walk over all of mitmproxy again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(STEP, STEPS, gc.get_threshold()[2])


async def tidy(idle: Callable[[], bool]) -> None:
    """Look over what is new while `idle()`, for ever."""
    while True:
        await asyncio.sleep(LOOK)
        _, steps, times = gc.get_count()
        if steps >= ENOUGH and idle():
            gc.collect(2 if times >= FULL else 1)
