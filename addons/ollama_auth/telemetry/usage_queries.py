"""Ask the ledger: sums of any period by any of COLUMNS, and the latest requests. SQL on a connection, nothing else.

The console and scripts/usage ask here. Sums come from the table `hours`, which is kept for ever, except for what it
does not have, clients: these are asked of `requests`. All times are Unix seconds, and a request counts when it began.
Everything here may raise sqlite3.Error.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, tzinfo
from functools import cache, partial
from operator import add, attrgetter
from typing import Any

from . import usage_db
from .usage_db import DAY, HOUR, QUARTER

PERIODS = ("hour", "day", "month")
NAMES = ("key", "model", "outcome", "reason")
COLUMNS = (*PERIODS, *NAMES, "client")
"""What sums may be asked by: at most one of PERIODS, and any of the others."""
FOREVER = 253_402_300_799.0
"""The end of the year 9999."""
MAX_SAMPLE = 200_000
"""Times that percentiles are made of, about, where there are more."""
PART_ROWS, PART_HOURS = 20_000, 720
"""Rows and hours of one query: SQLite sorts 20,000 rows fifty times in less time than a million once."""
_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(slots=True)
class Sums:
    """Sums over some requests."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    """Requests of which the tokens are an estimate."""
    bytes_in: int = 0
    bytes_out: int = 0
    generation_ms: float = 0
    """The time in which the tokens were made, of all answers together."""
    refused: int = 0
    failed: int = 0
    broken_off: int = 0

    @property
    def answered(self) -> int:
        return self.requests - self.refused - self.failed - self.broken_off

    @property
    def speed(self) -> float | None:
        """Tokens per second of an answer; None where nothing was made."""
        tokens, took = self.completion_tokens, self.generation_ms
        return round(1000 * tokens / took, 1) if tokens and took else None

    @property
    def figures(self) -> dict[str, Any]:
        """FIGURES and their values."""
        return dict(zip(FIGURES, attrgetter(*FIGURES)(self), strict=True))


FIGURES = (
    "requests", "answered", "refused", "failed", "broken_off", "prompt_tokens", "completion_tokens", "estimated",
    "bytes_in", "bytes_out", "speed",
)  # fmt: skip
"""What the console shows of sums."""
_NUMBERS = tuple(one.name for one in fields(Sums))
_SUMMED = _NUMBERS[1:7]
_OUTCOMES = _NUMBERS[7:]
_OUTCOME = NAMES.index("outcome")


def aggregates(count: str) -> list[str]:
    """SQL for what `summed` takes; `count` is that of the requests."""
    return [count, *(f"coalesce(sum({name}), 0)" for name in _SUMMED)]


def summed(numbers: list[Any], outcome: str) -> list[Any]:
    """The fields of Sums, of requests that all ended in one way."""
    return [*numbers, *(numbers[0] * (outcome == name) for name in _OUTCOMES)]


def added(parts: Iterable[Sums]) -> Sums:
    """The sums of all of these together."""
    return Sums(*map(sum, zip(*map(attrgetter(*_NUMBERS), parts), strict=True)))


@dataclass(frozen=True, slots=True)
class Chosen:
    """Requests that began in [since, until), and that have one of the values of each column in `where`."""

    since: float = 0
    until: float = FOREVER
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values by column: of NAMES, or client."""

    def condition(self, time: str) -> tuple[str, list[Any]]:
        """An SQL condition on a table with group_id, and its parameters; `time` is the column of the time."""
        parts, values = [f"{time} >= ?"], list[Any]([self.since])
        if self.until < FOREVER:
            parts, values = [*parts, f"{time} < ?"], [*values, self.until]
        for column, allowed in self.where.items():
            test = f"{column} IN ({', '.join('?' * len(allowed))})"
            parts.append(test if column == "client" else f"group_id IN (SELECT id FROM groups WHERE {test})")
            values += allowed
        return " AND ".join(parts), values


def sums(
    connection: sqlite3.Connection,
    by: Sequence[str],
    chosen: Chosen | None = None,
    zone: tzinfo = UTC,
    others: Sequence[sqlite3.Connection] = (),
) -> dict[tuple[str, ...], Sums]:
    """Return sums by the values of columns, in no order. Hours, days and months are those of a time zone.

    Without clients, [since, until) is widened to whole hours; with clients, the past ends where rows are kept no more.
    `others` are further connections that see the same moment: with each, a thread takes its share of the rows.
    """
    chosen = chosen or Chosen()
    clients = "client" in by or "client" in chosen.where
    if not clients:
        chosen = Chosen(chosen.since // HOUR * HOUR, chosen.until, chosen.where)
    what = aggregates("count(*)" if clients else "sum(requests)")
    found: dict[tuple[str, ...], list[Any]] = {}
    table = "requests" if clients else "hours"
    rows = _grouped([connection, *others], table, what, by, chosen, zone)
    merge(found, ((place, summed(numbers, outcome)) for place, outcome, numbers in rows), add)
    return {place: Sums(*numbers) for place, numbers in found.items()}


def first_tokens(
    connection: sqlite3.Connection,
    by: Sequence[str],
    chosen: Chosen,
    zone: tzinfo,
    requests: int,
    others: Sequence[sqlite3.Connection] = (),
) -> tuple[dict[tuple[str, ...], list[float]], list[float]]:
    """Return median and 95th percentile of the times to the first token in milliseconds, of each place and of all.

    These are as far as rows are kept; an empty list is of none. Of more than MAX_SAMPLE `requests`, a share is read,
    chosen by the millisecond in which they began: so the ledger and a log give the same.
    """
    found = dict[tuple[str, ...], list[float]]()
    first, last = ends(connection, "requests", "rowid")
    share = min(requests, last - first + 1) // MAX_SAMPLE + 1
    share += share % 5 == 0  # Requests that come by the second are not all left out.
    sample = f"ttft_ms IS NOT NULL AND CAST(time * 1000 + 0.001 AS INTEGER) % {share} = 0"
    for place, _, (times,) in _grouped(
        [connection, *others], "requests", ["group_concat(ttft_ms)"], by, chosen, zone, sample, "{},{}".format
    ):
        found.setdefault(place, []).extend(map(float, times.split(",")))
    everything = [number for numbers in found.values() for number in numbers]
    return {place: median_and_p95(numbers) for place, numbers in found.items()}, median_and_p95(everything)


def _grouped(
    connections: Sequence[sqlite3.Connection],
    table: str,
    what: list[str],
    by: Sequence[str],
    chosen: Chosen,
    zone: tzinfo,
    also: str = "true",
    join: Callable[[Any, Any], Any] = add,
) -> Iterator[tuple[tuple[str, ...], str, list[Any]]]:
    """Yield (values of the columns `by`, outcome, values of the aggregates `what`), perhaps several of a place.

    `join` makes one of two values of the same aggregate.
    """
    connection = connections[0]
    time = "hour" if table == "hours" else "time"
    condition, values = chosen.condition(time)
    period, unit = next((name for name in PERIODS if name in by), ""), "0"
    if period == "hour":
        unit = f"CAST({time} AS INTEGER) / {HOUR}"
    elif period:
        unit = f"CAST({time} + {offset(connection, time, chosen, zone)} AS INTEGER) / {DAY}"
    if period == "month":  # Grouped by days, nearly each row of a month may be a group of its own.
        unit = f"coalesce((SELECT first FROM months WHERE day = {unit}), {unit})"
    groups = {number: names for number, *names in connection.execute(f"SELECT id, {', '.join(NAMES)} FROM groups")}
    # The least group with the same names stands for all of them: a number is quicker to group by than names.
    alike = ", ".join(name for name in NAMES if name in by or name == "outcome")
    count = max(groups, default=0) + 1
    client, grouped = ("client", "1, 2") if "client" in by else ("''", "2")
    part, size = ("hour", PART_HOURS * HOUR) if table == "hours" else ("requests.rowid", PART_ROWS)
    query = (
        f"SELECT {client}, {unit} * {count} + place, {', '.join(what)} FROM {table} CROSS JOIN places "
        f"WHERE {also} AND number = group_id AND {part} BETWEEN ? AND ? AND {condition} GROUP BY {grouped}"
    )
    first, last = ends(connection, table, part)

    def read(connection: sqlite3.Connection, starts: range) -> dict[tuple[str, int], list[Any]]:
        if period == "month":
            note_months(connection)
        connection.execute(
            "CREATE TEMP TABLE IF NOT EXISTS places (number INTEGER PRIMARY KEY, place INTEGER NOT NULL)"
        )
        connection.execute(f"REPLACE INTO temp.places SELECT id, min(id) OVER (PARTITION BY {alike}) FROM groups")
        found: dict[tuple[str, int], list[Any]] = {}
        for start in starts:
            rows = connection.execute(query, [start, start + size - 1, *values])
            merge(found, (((address, place), parts) for address, place, *parts in rows), join)
        return found

    starts, threads = range(first, last + 1, size), len(connections)
    if threads == 1:
        found = read(connection, starts)
    else:
        with ThreadPoolExecutor(threads) as pool:
            found, *more = pool.map(read, connections, [starts[number::threads] for number in range(threads)])
        for other in more:
            merge(found, other.items(), join)
    name = cache(partial(shown, period=period, zone=zone))
    order = [(*NAMES, "client", period).index(column) for column in by]
    for (address, place), whole in found.items():
        at, group = divmod(place, count)
        row = (*groups[group], address, name(at))
        yield tuple([row[index] for index in order]), row[_OUTCOME], whole


def merge[K](into: dict[K, list[Any]], more: Iterable[tuple[K, list[Any]]], join: Callable[[Any, Any], Any]) -> None:
    for key, parts in more:
        into[key] = [*map(join, into[key], parts)] if key in into else parts


def note_months(connection: sqlite3.Connection) -> None:
    """Make a temporary table of the days that there may be, with the first of their month, both in days since 1970."""
    first, last = (hour // DAY for hour in ends(connection, "hours", "hour"))
    days = [(day, day + 1 - date.fromordinal(_EPOCH + day).day) for day in range(first - 1, last + 2)]
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS months (day INTEGER PRIMARY KEY, first INTEGER NOT NULL)")
    connection.executemany("INSERT OR IGNORE INTO months VALUES (?, ?)", days)


def ends(connection: sqlite3.Connection, table: str, column: str) -> tuple[int, int]:
    """Return the least and the greatest value of a column with an index; (0, -1) if there are none."""
    found = connection.execute(f"SELECT (SELECT min({column}) FROM {table}), (SELECT max({column}) FROM {table})")
    first, last = found.fetchone()
    return (0, -1) if first is None else (first, last)


def shown(number: int, period: str, zone: tzinfo) -> str:
    """The hour, day or month of a number of hours or days since 1970."""
    if period == "hour":
        return local(number * HOUR, zone).isoformat(timespec="minutes")
    return date.fromordinal(_EPOCH + number).isoformat()[: len("2026-11" if period == "month" else "2026-11-26")]


def local(time: float, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(time, zone)


def offset(connection: sqlite3.Connection, time: str, chosen: Chosen, zone: tzinfo) -> str:
    """An SQL expression for the seconds that a zone is ahead of UTC at the time in a column."""
    first, last = ends(connection, "hours", "hour")
    start, end = max(first, chosen.since), min(last + HOUR, chosen.until)
    changes: list[tuple[int, int]] = []
    """(offset, when it ended)"""
    at, before = int(start) // QUARTER * QUARTER, seconds_ahead(start, zone)
    while at < end:
        if seconds_ahead(at + DAY, zone) == before:  # No zone changes its clocks twice in a day.
            at += DAY
            continue
        at += QUARTER
        if (now := seconds_ahead(at, zone)) != before:
            changes.append((before, at))
            before = now
    cases = "".join(f"WHEN {time} < {when} THEN {ahead} " for ahead, when in changes)
    return f"CASE {cases}ELSE {before} END" if cases else str(before)


def seconds_ahead(time: float, zone: tzinfo) -> int:
    ahead = local(time, zone).utcoffset()
    return int(ahead.total_seconds()) if ahead else 0


ROW = ("number", *usage_db.ROW, *NAMES)
"""The columns of what `latest` returns."""


def latest(
    connection: sqlite3.Connection,
    chosen: Chosen | None = None,
    limit: int = 100,
    before: int | None = None,
    after: int = 0,
) -> list[dict[str, Any]]:
    """Return rows of requests, those that ended last first. `number` of the last one is the `before` of the next.

    `after` is the number of the last one that is known already.
    """
    condition, values = (chosen or Chosen()).condition("time")
    if after:
        condition, values = f"{condition} AND requests.rowid > ?", [*values, after]
    if before is not None:
        condition, values = f"{condition} AND requests.rowid < ?", [*values, before]
    rows = connection.execute(
        f"SELECT requests.rowid, {', '.join(f'requests.{name}' for name in usage_db.ROW)}, {', '.join(NAMES)} "
        f"FROM requests JOIN groups ON groups.id = group_id WHERE {condition} ORDER BY requests.rowid DESC LIMIT ?",
        [*values, limit],
    )
    return [dict(zip(ROW, row, strict=True)) for row in rows]


def newest(connection: sqlite3.Connection) -> int:
    """Return the number of the request that ended last; 0 if there is none."""
    return connection.execute("SELECT max(rowid) FROM requests").fetchone()[0] or 0


def median_and_p95(numbers: list[float]) -> list[float]:
    """Two percentiles of numbers, which are sorted by this; an empty list without any."""
    numbers.sort()
    return [round(numbers[-(-len(numbers) * share // 100) - 1], 2) for share in (50, 95) if numbers]
