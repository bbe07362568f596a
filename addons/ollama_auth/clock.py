"""The clock by which credentials expire and failures are counted. Tests set `offset` in a running gate."""

import time

from . import IMPORTED  # noqa: F401, not a script: see __init__.py

offset = 0.0
"""Seconds that this clock is ahead of the system's."""


def wall() -> float:
    """Return the time in seconds since 1970."""
    return time.time() + offset


def monotonic() -> float:
    """Return seconds that never go back."""
    return time.monotonic() + offset
