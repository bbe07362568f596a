"""Count requests by key, by model and by minute for the status page. In memory, and bounded whatever clients send."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..exchange import Exchange, Outcome
from .figures import answering_model, current_model, key_of, stream_speed, used_by
from .log_histogram import LogHistogram, bucket

OTHER = "(other)"
"""The label for all names beyond a bound. No key and no model has parentheses in its name."""
MAX_NAMES = 200
"""Keys, and models, that are counted separately."""
MINUTES = 60
_SHOWN = ("requests", "refused", "prompt_tokens", "completion_tokens")
_SHOWN_BY_MINUTE = ("requests", *map(str, Outcome), "prompt_tokens", "completion_tokens")
_DURATIONS = ("ttft", "duration", "token")
_RECENT = 0.2
"""Weight of the newest answer in the speed that is shown."""


class BoundedLabels:
    """Keep the first names as they are and map all further ones to OTHER, so that clients cannot grow a table."""

    def __init__(self, most: int = MAX_NAMES) -> None:
        self._most = most
        self._names: set[str] = set()

    def __call__(self, name: str) -> str:
        """The label for a name."""
        if name not in self._names:
            if len(self._names) >= self._most:
                return OTHER
            self._names.add(name)
        return name


@dataclass(slots=True)
class Totals:
    """Counts of one key or one model. `speed` is a moving average in tokens per second; `last` is in Unix seconds."""

    counts: Counter[str] = field(default_factory=Counter)
    speed: float | None = None
    last: float = 0

    def add(self, counts: Mapping[str, int], speed: float | None) -> None:
        self.counts.update(counts)
        self.last = time.time()
        if speed:
            self.speed = speed if self.speed is None else (1 - _RECENT) * self.speed + _RECENT * speed

    def merge(self, counts: Mapping[str, int], speed: float | None, last: float) -> None:
        """Add what another process counted."""
        if self.speed is None or (speed is not None and last > self.last):
            self.speed = speed
        self.counts.update(counts)
        self.last = max(self.last, last)


@dataclass(slots=True)
class Minute:
    """Counts, and durations by name, of the requests that ended in one minute."""

    counts: Counter[str] = field(default_factory=Counter)
    durations: dict[str, LogHistogram] = field(default_factory=lambda: {name: LogHistogram() for name in _DURATIONS})

    def add(self, counts: Mapping[str, int], exchange: Exchange) -> None:
        self.counts.update(counts)
        if exchange.admitted and exchange.ended:
            self.durations["duration"].add((exchange.ended - exchange.started) * 1000)
        if exchange.first_token:
            self.durations["ttft"].add((exchange.first_token - exchange.started) * 1000)

    def shown(self, number: int) -> dict[str, object]:
        """A row for the status page; `number` is in minutes since 1970."""
        counts = {name: self.counts[name] for name in _SHOWN_BY_MINUTE}
        durations = {f"{name}_ms": times.percentiles(0.5, 0.95) for name, times in self.durations.items()}
        return {"time": number * 60, **counts, **durations}


class History:
    """The counts of one process, or of several merged."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._tables: dict[str, dict[str, Totals]] = {"key": {}, "model": {}}
        self._labels = {"key": BoundedLabels(), "model": BoundedLabels()}
        self._refusals: Counter[str] = Counter()
        self._minutes: dict[int, Minute] = {}

    def ended(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        used = used_by(exchange)
        counts = {
            "requests": 1,
            str(exchange.outcome): 1,
            "prompt_tokens": (used and used.prompt_tokens) or 0,
            "completion_tokens": (used and used.completion_tokens) or 0,
        }
        self._totals("key", key_of(exchange)).add(counts, exchange.speed)
        if model := answering_model(exchange):
            self._totals("model", model).add(counts, exchange.speed)
        if exchange.outcome is Outcome.REFUSED:
            self._refusals[str(exchange.reason)] += 1
        self._minute().add(counts, exchange)

    def add_token_intervals(self, intervals: Iterable[float]) -> None:
        """Count times between two tokens, in seconds."""
        self._minute().durations["token"].counts.update(bucket(interval * 1000) for interval in intervals)

    def shown(self) -> dict[str, object]:
        """`keys`, `models`, `refusals` and the last hour in `minutes`, oldest first, for the status page."""
        last = int(self._now() // 60)
        hour = range(last - MINUTES + 1, last + 1)
        return {
            **{f"{kind}s": _rows(kind, table) for kind, table in self._tables.items()},
            "refusals": dict(self._refusals),
            "minutes": [self._minutes.get(number, Minute()).shown(number) for number in hour],
        }

    def plain(self) -> dict[str, Any]:
        """All of it, as `json.dumps` takes it."""
        return {
            "totals": [
                (kind, name, of.counts, of.speed, of.last)
                for kind, table in self._tables.items()
                for name, of in table.items()
            ],
            "refusals": self._refusals,
            "minutes": {
                number: [minute.counts, {name: times.counts for name, times in minute.durations.items()}]
                for number, minute in self._minutes.items()
            },
        }

    def with_others(self, others: Iterable[Mapping[str, Any]]) -> "History":
        """Merge this with what other processes on the port counted, each given as parsed JSON of `plain()`.

        Raises AttributeError, KeyError, TypeError or ValueError for anything else.
        """
        whole = History(self._now)
        for plain in (json.loads(json.dumps(self.plain())), *others):
            for kind, name, *totals in plain["totals"]:
                whole._totals(kind, name).merge(*totals)
            whole._refusals.update(plain["refusals"])
            for number, (counts, durations) in plain["minutes"].items():
                minute = whole._minutes.setdefault(int(number), Minute())
                minute.counts.update(counts)
                for name, times in durations.items():
                    minute.durations[name].counts.update({int(bucket): count for bucket, count in times.items()})
        return whole

    def _totals(self, kind: str, name: str) -> Totals:
        return self._tables[kind].setdefault(self._labels[kind](name), Totals())

    def _minute(self) -> Minute:
        number = int(self._now() // 60)
        if number not in self._minutes:
            self._minutes[number] = Minute()
            for old in sorted(self._minutes)[:-MINUTES]:
                del self._minutes[old]
        return self._minutes.get(number) or Minute()  # A clock that was set back far counts nowhere.


def _rows(kind: str, totals: Mapping[str, Totals]) -> list[dict[str, object]]:
    """Rows for the status page, the busiest first."""
    busiest = sorted(totals.items(), key=lambda item: (-item[1].counts["requests"], item[0]))
    return [
        {kind: name}
        | {count: of.counts[count] for count in _SHOWN}
        | {"speed": of.speed and round(of.speed, 1), "last": of.last}
        for name, of in busiest
    ]


def in_flight(exchange: Exchange, now: float) -> dict[str, object]:
    """The row of a running request for the status page; `now` is by `time.monotonic`."""
    return {
        "id": exchange.id,
        "key": key_of(exchange),
        "method": exchange.method,
        "path": (exchange.path or b"").decode("ascii", "replace")[:256],
        "model": current_model(exchange),
        "stream": exchange.stream,
        "seconds": round(now - exchange.started, 1),
        "ttft_ms": round((exchange.first_token - exchange.started) * 1000, 1) if exchange.first_token else None,
        "tokens": exchange.tokens,
        "speed": stream_speed(exchange),
    }
