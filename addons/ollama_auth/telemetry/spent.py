"""The tokens that one key used, as this process counted them, for its limits."""

from bisect import bisect_left

from .usage_db import DAY, QUARTER, SPENT_DAYS

MAX_QUARTERS = SPENT_DAYS * DAY // QUARTER
"""Quarters of an hour that are kept, at least."""


class Spent:
    """The tokens of one key, by quarters of an hour."""

    __slots__ = ("_before", "_quarters", "total")

    def __init__(self) -> None:
        self._quarters: list[int] = []
        self._before: list[int] = []
        """What was used before each of the quarters."""
        self.total = 0

    def add(self, quarter: int, tokens: int) -> None:
        quarters, before = self._quarters, self._before
        if not quarters or quarter > quarters[-1]:
            quarters.append(quarter)
            before.append(self.total)
            if len(quarters) > 2 * MAX_QUARTERS:
                del quarters[:MAX_QUARTERS], before[:MAX_QUARTERS]
        elif quarter < quarters[-1]:  # The clock was set back.
            at = bisect_left(quarters, quarter)
            if quarters[at] != quarter:
                quarters.insert(at, quarter)
                before.insert(at, before[at])
            before[at + 1 :] = [count + tokens for count in before[at + 1 :]]
        self.total += tokens

    def between(self, first: int, end: int) -> int:
        """The tokens from one quarter on, and before another."""
        return self._until(end) - self._until(first)

    def _until(self, quarter: int) -> int:
        index = bisect_left(self._quarters, quarter)
        return self._before[index] if index < len(self._quarters) else self.total

    @property
    def quarters(self) -> list[int]:
        """Those in which tokens were used, in order."""
        return self._quarters
