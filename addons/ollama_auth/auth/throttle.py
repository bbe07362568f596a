"""Guards against abuse of credentials: wrong keys counted by network, and the replay of signatures.

Pure, with bounded memory. Nobody with a right key is refused for what others at the same address send: a guess among
128 random bits never hits, however fast one may guess. What is throttled are the answers to wrong keys, and their lines
in the log.
"""

from collections import Counter, OrderedDict

from .. import clock

WINDOW = 60.0
"""Seconds for which a wrong key is remembered."""
MAX_KEYS, MAX_SIGNATURES = 50_000, 10_000
"""Wrong keys of all networks, and signatures, that are remembered; the oldest are forgotten first."""
REPLAY_GRACE = 2.0
"""Seconds in which an equal signed request may be repeated, where a replay would do harm."""


class Throttle:
    """Counts different wrong keys: a program that repeats one guesses nothing."""

    def __init__(self) -> None:
        self.most = 0
        """Wrong keys of one network in a window, with which it is throttled; 0: never."""
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()
        """When a wrong key first came from a network."""
        self._counts: Counter[str] = Counter()
        """How many of them each network has sent."""

    def failed(self, network: str, key: str) -> bool:
        """Count a wrong key, given by its fingerprint. Return whether its network is throttled."""
        if not self.most:
            return False
        now = clock.monotonic()
        while self._seen and now - next(iter(self._seen.values())) > WINDOW:
            self._forget_oldest()
        if (network, key) not in self._seen:
            self._seen[network, key] = now
            self._counts[network] += 1
            if len(self._seen) > MAX_KEYS:
                self._forget_oldest()
        return self._counts[network] >= self.most

    def throttled(self) -> dict[str, int]:
        """Return the networks that are throttled now, with their wrong keys."""
        now = clock.monotonic()
        counts = Counter(network for (network, _), seen in self._seen.items() if now - seen <= WINDOW)
        return {network: count for network, count in counts.items() if self.most and count >= self.most}

    def _forget_oldest(self) -> None:
        (network, _), _ = self._seen.popitem(last=False)
        self._counts[network] -= 1
        if not self._counts[network]:
            del self._counts[network]


class ReplayCache:
    """The times at which the latest signatures were first used.

    To push one out before its time takes as many other valid signatures, and so a key of one's own.
    """

    def __init__(self) -> None:
        self._first_used: OrderedDict[bytes, float] = OrderedDict()

    def replayed(self, signature: bytes, now: float) -> bool:
        """Whether a verified signature was first used more than REPLAY_GRACE seconds ago, by a monotonic clock."""
        first = self._first_used.setdefault(signature, now)
        if len(self._first_used) > MAX_SIGNATURES:
            self._first_used.popitem(last=False)
        return not 0 <= now - first <= REPLAY_GRACE
