"""Copy a body while it passes, up to a bound: for the audit log, for mitmweb and for replays."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mitmproxy.http import Message

from . import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

MAX_KEPT = 4 * 1024 * 1024
"""Bytes of one body."""


@dataclass(slots=True)
class BoundedCopy:
    """The first MAX_KEPT bytes of a body."""

    data: bytearray = field(default_factory=bytearray)
    truncated: bool = False

    def add(self, data: bytes) -> None:
        """Append the next bytes, as far as there is room."""
        room = MAX_KEPT - len(self.data)
        self.data += data[:room]
        self.truncated |= len(data) > room

    def cut(self, most: int) -> None:
        """Keep at most so many bytes."""
        self.truncated |= len(self.data) > most
        del self.data[most:]


@dataclass(slots=True)
class Recording:
    """A request and its answer, for the audit log."""

    request: BoundedCopy = field(default_factory=BoundedCopy)
    answer: BoundedCopy = field(default_factory=BoundedCopy)

    @property
    def size(self) -> int:
        """Bytes of both."""
        return len(self.request.data) + len(self.answer.data)


def keeping(message: Message, pass_on: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Wrap `pass_on` for `message.stream`, so that a body of at most MAX_KEPT bytes is in the message once it is whole.

    mitmproxy calls the result with b"" at the end of the body.
    """
    copy = BoundedCopy()

    def chunk(data: bytes) -> bytes:
        if data:
            copy.add(data)
        elif not copy.truncated:
            message.raw_content = bytes(copy.data)
        return pass_on(data)

    return chunk
