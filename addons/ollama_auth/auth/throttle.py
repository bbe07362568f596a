"""Wrong credentials, counted by network, so that guessing is hopeless and its noise is bounded. Pure; bounded memory.

While a network is throttled, a key that was good from there before still is: people behind the same address go on
working. A key that turns out right only now is not taken, or guessing would merely be slow.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

WINDOW = 60.0
"""Seconds in which failures are counted, and after the last of which they are forgotten."""
NETWORKS = 10_000
"""Networks, and pairs of network and principal, that are remembered; the oldest are forgotten first."""


class Throttle:
    """Who has failed too often lately."""

    def __init__(self, most: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        """Failures of one network in a window, after which it is throttled; 0: never."""
        self._clock = clock
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._trusted: OrderedDict[tuple[str, str], None] = OrderedDict()

    def failed(self, network: str) -> None:
        """A wrong credential came from there."""
        now = self._clock()
        since, count = self._failures.pop(network, (now, 0))
        if now - since > WINDOW:
            since, count = now, 0
        # Once throttled, every further failure starts the window anew.
        self._failures[network] = (now if count >= self.most else since, count + 1)
        _shorten(self._failures)

    def succeeded(self, network: str, principal: str) -> None:
        """A good credential came from there."""
        self._trusted[network, principal] = None
        self._trusted.move_to_end((network, principal))
        _shorten(self._trusted)

    def blocks(self, network: str, principal: str | None = None) -> int:
        """Seconds for which credentials from there are not taken, but for those of a principal seen there; 0: none."""
        since, count = self._failures.get(network, (0.0, 0))
        left = WINDOW - (self._clock() - since)
        if (
            not self.most
            or count < self.most
            or left <= 0
            or (principal is not None and (network, principal) in self._trusted)
        ):
            return 0
        return int(left) + 1


def _shorten[K, V](remembered: OrderedDict[K, V]) -> None:
    while len(remembered) > NETWORKS:
        remembered.popitem(last=False)
