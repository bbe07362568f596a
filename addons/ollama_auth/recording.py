"""A conversation, as it passes: the first of what is asked and of what is answered."""

from dataclasses import dataclass, field

from . import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

MAX_KEPT = 4 * 1024 * 1024
"""Bytes of a request, and of an answer."""


@dataclass(slots=True)
class Kept:
    """The first of a body."""

    data: bytearray = field(default_factory=bytearray)
    truncated: bool = False

    def add(self, data: bytes) -> None:
        """The next of it."""
        room = MAX_KEPT - len(self.data)
        self.data += data[:room]
        self.truncated |= len(data) > room


@dataclass(slots=True)
class Recording:
    """What was asked, and what was answered."""

    request: Kept = field(default_factory=Kept)
    answer: Kept = field(default_factory=Kept)
