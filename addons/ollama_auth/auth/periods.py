"""Calendar days and months of a time zone, by which the tokens of keys are limited. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py


@dataclass(frozen=True, slots=True)
class Period:
    """A day ("2026-11-26") or month ("2026-11"), from `start` to `end` in seconds since 1970."""

    name: str
    start: float
    end: float


class Calendar:
    """The days and months of one time zone. A day in which its clocks are changed has 23 or 25 hours."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._now: dict[str, Period] = {}

    def day(self, now: float) -> Period:
        return self._period("day", now, lambda today: (today, today + timedelta(days=1)), 10)

    def month(self, now: float) -> Period:
        return self._period("month", now, _month_around, 7)

    def _period(self, unit: str, now: float, around: Callable[[date], tuple[date, date]], letters: int) -> Period:
        found = self._now.get(unit)
        if found is None or not found.start <= now < found.end:
            first, following = around(datetime.fromtimestamp(now, self._zone).date())
            found = Period(first.isoformat()[:letters], self._midnight(first), self._midnight(following))
            self._now[unit] = found
        return found

    def _midnight(self, day: date) -> float:
        """When a day begins; where the clocks skip its midnight, when they do."""
        return datetime(day.year, day.month, day.day, tzinfo=self._zone).timestamp()


def _month_around(day: date) -> tuple[date, date]:
    first = day.replace(day=1)
    return first, (first + timedelta(days=31)).replace(day=1)
