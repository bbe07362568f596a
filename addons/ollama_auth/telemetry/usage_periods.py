"""A period of the ledger for the plots and tables of the overview: SQL on a connection. Times are Unix seconds.

A request counts when it ended. Its tokens count while they were made: otherwise a long answer would be a spike at its
end. So requests that took longer than a step of the plot are spread over the steps they touch.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..exchange import Outcome
from .usage_db import HOUR
from .usage_queries import NAMES, Chosen, Sums, aggregates, summed, sums

COUNTS = (*map(str, Outcome), "prompt_tokens", "completion_tokens", "at_once")
_BY_LIMITS = ("requests_per_minute", "concurrent_requests", "tokens_per_day", "tokens_per_month", "held bodies")
_OUTCOMES = ", ".join(f"sum(outcome = '{outcome}')" for outcome in Outcome)


@dataclass(frozen=True, slots=True)
class Period:
    """`count` steps of `step` seconds each, from `since` on."""

    since: float
    step: int
    count: int

    @property
    def until(self) -> float:
        return self.since + self.step * self.count

    def parts(self, begun: float, ended: float) -> Iterator[tuple[int, float]]:
        """Yield (step, seconds of it) for all that lies between two times."""
        first, last = int((begun - self.since) // self.step), int((ended - self.since) // self.step)
        for index in range(max(0, first), min(self.count - 1, last) + 1):
            start = self.since + index * self.step
            yield index, max(0.0, min(ended, start + self.step) - max(begun, start))


type Groups = dict[tuple[str, ...], Sums]
"""By (key, model, outcome, reason)."""
type Running = Iterable[tuple[float, float | None, int]]
"""(began, milliseconds to the first token or None, tokens so far) of requests under way."""


def buckets(connection: sqlite3.Connection, period: Period) -> list[dict[str, Any]]:
    """Return what ended in each step, and what was made and under way in it."""
    found: list[dict[str, Any]] = [
        {"time": period.since + i * period.step, **dict.fromkeys(COUNTS, 0), "ttft_ms": None, "speed": None}
        for i in range(period.count)
    ]
    bucket = f"CAST((ended - {period.since}) / {period.step} AS INTEGER)"
    short = f"duration_ms <= {period.step * 1000}"
    for index, *counts in connection.execute(
        f"SELECT {bucket}, {_OUTCOMES}, sum(iif({short}, prompt_tokens, 0)), sum(iif({short}, completion_tokens, 0)), "
        f"sum(iif({short}, duration_ms, 0)) / {period.step * 1000} FROM requests JOIN groups ON groups.id = group_id "
        "WHERE ended >= ? AND ended < ? GROUP BY 1",
        (period.since, period.until),
    ):
        found[index] |= {name: value or 0 for name, value in zip(COUNTS, counts, strict=True)}
    for begun, ended, prompt, completion, generation in connection.execute(
        "SELECT time, ended, prompt_tokens, completion_tokens, generation_ms FROM requests "
        f"WHERE ended >= ? AND time < ? AND NOT {short}",
        (period.since, period.until),
    ):
        made_since = ended - (generation or 0) / 1000
        spread(found, period, begun, ended, made_since, completion or 0)
        for index, _ in period.parts(made_since, made_since):
            found[index]["prompt_tokens"] += prompt or 0
    for column, name, shares in (("ttft_ms", "ttft_ms", (0.5, 0.95)), (SPEED, "speed", (0.5, 0.05))):
        for index, low, high in percentiles(connection, bucket, column, period, shares):
            found[index][name] = [low, high]
    return found


SPEED = "1000.0 * completion_tokens / nullif(generation_ms, 0)"
"""Tokens per second of an answer, in SQL."""


def add_running(found: list[dict[str, Any]], period: Period, running: Running, now: float) -> None:
    """Add what is under way now."""
    for begun, ttft, tokens in running:
        spread(found, period, begun, now, now if ttft is None else begun + ttft / 1000, tokens)


def spread(
    found: list[dict[str, Any]], period: Period, begun: float, ended: float, made_since: float, tokens: int
) -> None:
    """Count a request in each step that it touches, and its tokens in those in which they were made."""
    for index, seconds in period.parts(begun, ended):
        found[index]["at_once"] += seconds / period.step
    took = max(ended - made_since, 0.001)
    for index, seconds in period.parts(made_since, max(ended, made_since + 0.001)):
        found[index]["completion_tokens"] += round(tokens * seconds / took)


def percentiles(
    connection: sqlite3.Connection, group: str, column: str, period: Period, shares: tuple[float, float]
) -> list[tuple[Any, float, float]]:
    """Return (group, value at one share, value at the other) of a column of answers; the first share is the median."""
    return connection.execute(
        f"SELECT g, max(iif(n = CAST(c * {shares[0]} AS INTEGER) + 1, v, NULL)), "
        f"max(iif(n = CAST(c * {shares[1]} AS INTEGER) + 1, v, NULL)) FROM (SELECT {group} AS g, {column} AS v, "
        f"row_number() OVER (PARTITION BY {group} ORDER BY {column}) AS n, count(*) OVER (PARTITION BY {group}) AS c "
        f"FROM requests JOIN groups ON groups.id = group_id WHERE ended >= ? AND ended < ? AND {column} IS NOT NULL) "
        "GROUP BY g",
        (period.since, period.until),
    ).fetchall()


def groups(connection: sqlite3.Connection, since: float, *, exact: bool) -> Groups:
    """Return sums by key, model, outcome and reason; those of whole hours, which are kept for ever, unless `exact`."""
    if not exact:
        return sums(connection, NAMES, Chosen(since))
    rows = connection.execute(
        f"SELECT {', '.join((*NAMES, *aggregates('count(*)')))} FROM requests JOIN groups ON groups.id = group_id "
        "WHERE ended >= ? GROUP BY group_id",
        (since,),
    )
    return {
        (key, model, outcome, reason): Sums(*summed(numbers, outcome)) for key, model, outcome, reason, *numbers in rows
    }


def hourly(connection: sqlite3.Connection, period: Period, found: list[dict[str, Any]]) -> None:
    """Replace the counts of steps of whole hours by sums that are kept for ever."""
    for bucket in found:
        bucket |= dict.fromkeys((*map(str, Outcome), "prompt_tokens", "completion_tokens"), 0)
    for hour, outcome, requests, prompt, completion in connection.execute(
        "SELECT hour, outcome, sum(requests), sum(prompt_tokens), sum(completion_tokens) FROM hours "
        "JOIN groups ON groups.id = group_id WHERE hour >= ? AND hour < ? GROUP BY 1, 2",
        (period.since // HOUR * HOUR, period.until),
    ):
        bucket = found[max(0, int((hour - period.since) // period.step))]
        bucket[outcome] += requests
        bucket["prompt_tokens"] += prompt
        bucket["completion_tokens"] += completion


def held_back(since: float, most: int, connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """Return who was refused for a limit since a time, and from where."""
    rows = connection.execute(
        "SELECT key, client, reason, count(*) FROM requests JOIN groups ON groups.id = group_id WHERE ended >= ? "
        f"AND reason IN ({', '.join('?' * len(_BY_LIMITS))}) GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT ?",
        (since, *_BY_LIMITS, most),
    )
    return [dict(zip(("key", "client", "reason", "requests"), row, strict=True)) for row in rows]
