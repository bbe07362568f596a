"""Guards against abuse of credentials: failed attempts counted by network, and the replay of signatures.

Pure, with bounded memory. While a network is throttled, principals that have authenticated from it before still may:
people behind the same address go on working. A key that is right only now is not accepted, or guessing would merely be
slow.
"""

from collections import OrderedDict
from collections.abc import Callable

from .. import clock

WINDOW = 60.0
"""Seconds in which failures are counted, and after the last of which they are forgotten."""
MAX_NETWORKS = 10_000
"""Networks, and pairs of network and principal, that are remembered; the oldest are forgotten first."""
REPLAY_GRACE = 2.0
"""Seconds in which an equal signed request may be repeated, where a replay would do harm."""


class Throttle:
    """Counts failed attempts to authenticate."""

    def __init__(self, most: int = 0, now: Callable[[], float] = clock.monotonic) -> None:
        self.most = most
        """Failures of one network in a window, after which it is throttled; 0: never."""
        self._now = now
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._trusted: OrderedDict[tuple[str, str], None] = OrderedDict()

    def failed(self, network: str) -> None:
        """Count a wrong credential from a network."""
        now = self._now()
        since, count = self._failures.pop(network, (now, 0))
        if now - since > WINDOW:
            since, count = now, 0
        # Once throttled, every further failure starts the window anew.
        self._failures[network] = (now if count >= self.most else since, count + 1)
        _drop_oldest(self._failures, MAX_NETWORKS)

    def succeeded(self, network: str, principal: str) -> None:
        """Remember a principal that authenticated from a network."""
        self._trusted[network, principal] = None
        self._trusted.move_to_end((network, principal))
        _drop_oldest(self._trusted, MAX_NETWORKS)

    def seconds_blocked(self, network: str, principal: str | None = None) -> int:
        """Return the seconds until this network may authenticate again; 0 if it is not throttled.

        A principal that has authenticated from it before is exempt.
        """
        since, count = self._failures.get(network, (0.0, 0))
        left = WINDOW - (self._now() - since)
        throttled = self.most and count >= self.most and left > 0
        exempt = principal is not None and (network, principal) in self._trusted
        return int(left) + 1 if throttled and not exempt else 0


class ReplayCache:
    """The times at which the latest signatures were first used.

    To push one out before its time takes as many other valid signatures, and so a key of one's own.
    """

    def __init__(self, max_signatures: int = 10_000) -> None:
        self._max = max_signatures
        self._first_used: OrderedDict[bytes, float] = OrderedDict()

    def replayed(self, signature: bytes, now: float) -> bool:
        """Whether a verified signature was first used more than REPLAY_GRACE seconds ago, by a monotonic clock."""
        first = self._first_used.setdefault(signature, now)
        _drop_oldest(self._first_used, self._max)
        return not 0 <= now - first <= REPLAY_GRACE


def _drop_oldest[K, V](remembered: OrderedDict[K, V], most: int) -> None:
    while len(remembered) > most:
        remembered.popitem(last=False)
