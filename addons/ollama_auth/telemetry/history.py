"""What was asked and used so far, by key, by model and by minute, for the status page. Pure, bounded in memory."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import ceil, log
from typing import Any

from ..exchange import Exchange
from ..ollama_api.usage import Usage

NOBODY, OTHER, UNKNOWN_MODEL = "(none)", "(other)", "(unknown)"
"""What stands for those without a known key, for names beyond the bound, and for an answer that names no model. No key
and no model is named so: theirs have no parentheses."""
MAX_NAMES = 200
"""Keys, and models, that are counted apart."""
MINUTES = 60
_STEP = 1.1
"""Ratio of two neighbouring buckets of a LogHistogram: what it tells is at most that much too high."""
_RECENT = 0.2
"""Weight of the newest answer in the speed that is shown."""


class BoundedLabels:
    """The first so many names stay as they are, and all further ones become one: who chooses names can't fill us."""

    def __init__(self, most: int = MAX_NAMES) -> None:
        self._most = most
        self._names: set[str] = set()

    def __call__(self, name: str) -> str:
        """That name, or the one for all others."""
        if name not in self._names:
            if len(self._names) >= self._most:
                return OTHER
            self._names.add(name)
        return name


def bucket(milliseconds: float) -> int:
    """The number of its bucket in a LogHistogram."""
    return ceil(log(min(max(milliseconds, 0.01), 1e9), _STEP))


@dataclass(slots=True)
class LogHistogram:
    """How long things took, in ms: counts in buckets of even ratio, so that some bytes tell any percentile."""

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, milliseconds: float) -> None:
        """One more."""
        self.merge({bucket(milliseconds): 1})

    def merge(self, counts: Mapping[int, int]) -> None:
        """Add what another one counted."""
        for number, count in counts.items():
            self.counts[number] = self.counts.get(number, 0) + count

    def percentiles(self, *shares: float) -> list[float] | None:
        """The values that these shares of all do not exceed; None where there are none."""
        total, seen = sum(self.counts.values()), 0
        wanted = [share * total for share in shares]
        found: list[float] = []
        for number in sorted(self.counts):
            seen += self.counts[number]
            while len(found) < len(wanted) and seen >= wanted[len(found)]:
                found.append(round(_STEP**number, 2))
        return found if total else None


@dataclass(slots=True)
class Totals:
    """Of one key, or one model. `speed` is in tokens a second, of the newest answers most; `last` in Unix seconds."""

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    speed: float | None = None
    last: float = 0

    def add(self, exchange: Exchange, used: Usage) -> None:
        """One more request."""
        self.requests += 1
        self.refused += exchange.refused
        self.prompt_tokens += used.prompt_tokens or 0
        self.completion_tokens += used.completion_tokens or 0
        self.last = time.time()
        if speed := exchange.speed:
            self.speed = speed if self.speed is None else (1 - _RECENT) * self.speed + _RECENT * speed

    def merge(self, other: "Totals") -> None:
        """Add what another gate counted."""
        if self.speed is None or (other.speed is not None and other.last > self.last):
            self.speed = other.speed
        self.requests += other.requests
        self.refused += other.refused
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.last = max(self.last, other.last)


@dataclass(slots=True)
class Minute:
    """Of all requests that ended in one minute; `number` counts minutes since 1970."""

    number: int
    requests: int = 0
    refused: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft: LogHistogram = field(default_factory=LogHistogram)
    duration: LogHistogram = field(default_factory=LogHistogram)
    token: LogHistogram = field(default_factory=LogHistogram)

    def add(self, exchange: Exchange, used: Usage) -> None:
        """One more request."""
        self.requests += 1
        self.refused += exchange.refused
        self.errors += exchange.admitted and (exchange.status or 0) >= 500
        self.prompt_tokens += used.prompt_tokens or 0
        self.completion_tokens += used.completion_tokens or 0
        if exchange.admitted and exchange.ended:
            self.duration.add((exchange.ended - exchange.started) * 1000)
        if exchange.first_token:
            self.ttft.add((exchange.first_token - exchange.started) * 1000)

    def merge(self, other: "Minute") -> None:
        """Add what another gate counted in the same minute."""
        self.requests += other.requests
        self.refused += other.refused
        self.errors += other.errors
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.ttft.merge(other.ttft.counts)
        self.duration.merge(other.duration.counts)
        self.token.merge(other.token.counts)

    def shown(self) -> dict[str, object]:
        """As the status page takes it."""
        return {
            "time": self.number * 60,
            "requests": self.requests,
            "refused": self.refused,
            "errors": self.errors,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "ttft_ms": self.ttft.percentiles(0.5, 0.95),
            "duration_ms": self.duration.percentiles(0.5, 0.95),
            "token_ms": self.token.percentiles(0.5, 0.95),
        }


class History:
    """One for a gate."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._keys: dict[str, Totals] = {}
        self._models: dict[str, Totals] = {}
        self._fold_key, self._fold_model = BoundedLabels(), BoundedLabels()
        self._refusals: Counter[str] = Counter()
        self._minutes: dict[int, Minute] = {}

    def ended(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        used = used_by(exchange)
        self._keys.setdefault(self._fold_key(key_of(exchange)), Totals()).add(exchange, used)
        if model := model_of(exchange):
            self._models.setdefault(self._fold_model(model), Totals()).add(exchange, used)
        if exchange.refused:
            self._refusals[exchange.reason or "other"] += 1
        self._minute().add(exchange, used)

    def pace(self, gaps: Iterable[float]) -> None:
        """Count times between two tokens, in seconds."""
        self._minute().token.merge(Counter(bucket(gap * 1000) for gap in gaps))

    def shown(self) -> dict[str, object]:
        """As the status page takes it: `keys`, `models`, `refusals` and the last hour in `minutes`, oldest first."""
        last = int(self._now() // 60)
        hour = range(last - MINUTES + 1, last + 1)
        return {
            "keys": [{"key": name, **totals} for name, totals in _shown(self._keys)],
            "models": [{"model": name, **totals} for name, totals in _shown(self._models)],
            "refusals": dict(self._refusals),
            "minutes": [self._minutes.get(number, Minute(number)).shown() for number in hour],
        }

    def plain(self) -> dict[str, Any]:
        """All of it, as JSON can have it."""
        return {
            "keys": {name: asdict(totals) for name, totals in self._keys.items()},
            "models": {name: asdict(totals) for name, totals in self._models.items()},
            "refusals": dict(self._refusals),
            "minutes": [asdict(minute) for minute in self._minutes.values()],
        }

    def with_others(self, others: Iterable[Mapping[str, Any]]) -> "History":
        """A new one, of what this and others counted: gates that share a port. Raises KeyError, TypeError or
        ValueError where what they say is not `plain`."""
        whole = History(self._now)
        for plain in (json.loads(json.dumps(self.plain())), *others):
            for mine, fold, theirs in (
                (whole._keys, whole._fold_key, plain["keys"]),
                (whole._models, whole._fold_model, plain["models"]),
            ):
                for name, totals in theirs.items():
                    mine.setdefault(fold(name), Totals()).merge(Totals(**totals))
            whole._refusals.update(plain["refusals"])
            for minute in plain["minutes"]:
                spreads: dict[str, Any] = {name: _spread(minute.pop(name)) for name in ("ttft", "duration", "token")}
                read = Minute(**minute, **spreads)
                whole._minutes.setdefault(read.number, Minute(read.number)).merge(read)
        return whole

    def _minute(self) -> Minute:
        number = int(self._now() // 60)
        if number not in self._minutes:
            self._minutes[number] = Minute(number)
            for old in sorted(self._minutes)[:-MINUTES]:
                del self._minutes[old]
        return self._minutes.get(number) or Minute(number)  # A clock that was put back far counts nowhere.


def _spread(plain: Mapping[str, Mapping[str, int]]) -> LogHistogram:
    return LogHistogram({int(number): count for number, count in plain["counts"].items()})


def _shown(totals: dict[str, Totals]) -> list[tuple[str, dict[str, object]]]:
    """The busiest first."""
    busiest = sorted(totals.items(), key=lambda item: (-item[1].requests, item[0]))
    return [
        (
            name,
            {
                "requests": of.requests,
                "refused": of.refused,
                "prompt_tokens": of.prompt_tokens,
                "completion_tokens": of.completion_tokens,
                "speed": of.speed and round(of.speed, 1),
                "last": of.last,
            },
        )
        for name, of in busiest
    ]


def key_of(exchange: Exchange) -> str:
    """The name of the key, or the one name for those that nobody has."""
    return exchange.key if exchange.key and exchange.identified else NOBODY


def model_of(exchange: Exchange) -> str | None:
    """The model that answered, by name; None where none did. What a refused request asked for may be any text."""
    if exchange.used is None or exchange.status != 200:
        return None
    return exchange.used.model or UNKNOWN_MODEL


def used_by(exchange: Exchange) -> Usage:
    """What an answer used; nothing where it was none."""
    return exchange.used if exchange.used and exchange.status == 200 else Usage()


def under_way(exchange: Exchange, now: float) -> dict[str, object]:
    """A request at work, as the status page takes it; `now` by `time.monotonic`."""
    return {
        "id": exchange.id,
        "key": key_of(exchange),
        "method": exchange.method,
        "path": (exchange.path or b"").decode("ascii", "replace")[:256],
        "model": (exchange.usage and exchange.usage.model) or exchange.model,
        "stream": exchange.stream,
        "seconds": round(now - exchange.started, 1),
        "ttft_ms": round((exchange.first_token - exchange.started) * 1000, 1) if exchange.first_token else None,
        "tokens": exchange.tokens,
        "speed": round(exchange.speed, 1) if exchange.first_token and exchange.speed else None,
    }
