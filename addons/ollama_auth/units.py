"""Sizes and durations as operators write them, in options and on command lines. Pure."""

import re
from datetime import timedelta

from . import IMPORTED  # noqa: F401, not a script: see __init__.py

_SIZE = re.compile(r"([0-9]{1,12})([kmg]?)b?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,5})([mhdw])")
_BYTES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_SPANS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_size(text: str) -> int | None:
    """`"32m"` -> bytes; None for anything else than a number and perhaps a suffix k, m or g."""
    match = _SIZE.fullmatch(text)
    return int(match[1]) * _BYTES[match[2].lower()] if match else None


def parse_duration(text: str) -> timedelta | None:
    """`"30d"` -> a duration; None for anything else than 0, or a number and a suffix m, h, d or w."""
    if text == "0":
        return timedelta()
    match = _DURATION.fullmatch(text)
    return timedelta(**{_SPANS[match[2]]: int(match[1])}) if match else None
