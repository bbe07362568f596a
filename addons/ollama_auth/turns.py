"""Go through many things a part at a time; between two parts the event loop passes tokens on."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import batched

from . import IMPORTED  # noqa: F401, not a script: see __init__.py

AT_ONCE = 64
"""Things in a part. To look at 5,000 streams or connections takes 5 to 20 ms, for which all tokens would wait."""


async def in_parts[T](things: Iterable[T]) -> AsyncIterator[tuple[T, ...]]:
    """Yield up to AT_ONCE things in each turn of the event loop. They must not change meanwhile: give a list."""
    for part in batched(things, AT_ONCE):
        yield part
        await asyncio.sleep(0)
