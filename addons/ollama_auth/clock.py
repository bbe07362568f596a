"""The clock by which credentials expire and failures are counted. Tests set `offset` in a running gate."""

import time
from datetime import UTC, datetime

from . import IMPORTED  # noqa: F401, not a script: see __init__.py

offset = 0.0
"""Seconds that this clock is ahead of the system's."""


def wall() -> float:
    """Return the time in seconds since 1970."""
    return time.time() + offset


def monotonic() -> float:
    """Return seconds that never go back."""
    return time.monotonic() + offset


def utc(seconds: float, precision: str = "milliseconds") -> str:
    """Unix seconds in RFC 3339 format; the precision is a `timespec` of datetime.isoformat."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).replace("+00:00", "Z")
