"""Request bodies that are kept in memory until they were inspected: how many bytes, of one key and in all."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import RefusedError
from ..http.responses import RETRY_SECONDS, retry_after


@dataclass(eq=False, slots=True)
class HeldBody:
    """The bytes that one request has in memory."""

    key: str
    size: int = 0
    sent: Callable[[], bool] | None = None
    """Whether Ollama has taken all of it; None as long as it waits for its end."""


class HeldBodies:
    """All of them; sizes are in bytes."""

    def __init__(self) -> None:
        self._bodies: set[HeldBody] = set()
        self._sizes: Counter[str] = Counter()

    def check(self, key: str, size: int, most: int, most_of_key: int) -> None:
        """Raise RefusedError if so many bytes more of this key are too many."""
        if self._fits(key, size, most, most_of_key):
            return
        for body in [body for body in self._bodies if body.sent and body.sent()]:
            self.release(body)
        if not self._fits(key, size, most, most_of_key):
            own = self._sizes[key] + size > most_of_key
            message = f"{'this key sends' if own else 'clients send'} too many large requests at once; try again later"
            raise RefusedError("held bodies", 429 if own else 503, message, retry_after(RETRY_SECONDS))

    def add(self, body: HeldBody, size: int, most: int, most_of_key: int) -> None:
        """Count bytes that have come of a body. Raises RefusedError."""
        self.check(body.key, size, most, most_of_key)
        self._bodies.add(body)
        body.size += size
        self._sizes[body.key] += size

    def release(self, body: HeldBody) -> None:
        """Count a body no more. A second call changes nothing."""
        if body in self._bodies:
            self._bodies.discard(body)
            self._sizes[body.key] -= body.size
            if not self._sizes[body.key]:
                del self._sizes[body.key]

    def _fits(self, key: str, size: int, most: int, most_of_key: int) -> bool:
        return self._sizes[key] + size <= most_of_key and self._sizes.total() + size <= most
