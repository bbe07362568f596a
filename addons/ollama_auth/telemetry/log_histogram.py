"""Count durations in buckets of even ratio, so that a few bytes give any percentile within 3 %.

`scripts/usage` imports this module: nothing here may need mitmproxy.
"""

from collections import Counter
from dataclasses import dataclass, field
from math import exp, floor, log

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

MIN_MS, MAX_MS = 0.01, 1e9
"""Shorter and longer durations, in milliseconds, are counted as these."""
_WIDTH = log(1.05)


def bucket(milliseconds: float) -> int:
    """The number of the bucket for a duration."""
    return floor(log(min(max(milliseconds, MIN_MS), MAX_MS)) / _WIDTH)


@dataclass(slots=True)
class LogHistogram:
    """Counts by bucket number."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, milliseconds: float) -> None:
        self.counts[bucket(milliseconds)] += 1

    def percentiles(self, *shares: float) -> list[float] | None:
        """Milliseconds that these shares (0 to 1, ascending) do not exceed; None for an empty histogram."""
        wanted = [share * self.counts.total() for share in shares]
        seen = 0
        found: list[float] = []
        for number, count in sorted(self.counts.items()):
            seen += count
            while len(found) < len(wanted) and seen >= wanted[len(found)]:
                found.append(float(f"{exp((number + 0.5) * _WIDTH):.3g}"))
        return found or None
