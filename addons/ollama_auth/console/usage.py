"""What was used, and the requests that ended. Administrators see those of all keys; any other key sees its own."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import date, datetime, timedelta, tzinfo
from functools import partial
from typing import Any

from ..telemetry import usage_queries
from ..telemetry.spreadsheet import harmless
from ..telemetry.status_server import Problem
from ..telemetry.usage_db import NO_KEY
from ..telemetry.usage_queries import COLUMNS, FIGURES, FOREVER, PERIODS, Chosen
from . import access
from .overview import shown_key
from .router import Call, Text

MAX_ROWS = 1000
"""Requests in one answer."""
LIVE = 1.0
"""Seconds between two looks for requests that have ended."""
MAX_LIVE = 500
"""Requests that one look shows; the others are in the list."""
FILTERS = ("key", "model", "outcome", "reason", "client")


async def usage(call: Call) -> object:
    by = [name for name in call.query.get("by", "day,key,model").split(",") if name]
    if not set(by) <= set(COLUMNS) or len(by) != len(set(by)) or len(set(by) & set(PERIODS)) > 1:
        raise Problem(400, f"by is not a list of {', '.join(COLUMNS)}, with at most one of {', '.join(PERIODS)}")
    zone = call.zone
    chosen = Chosen(instant(call, "since", 0, zone), instant(call, "until", FOREVER, zone), _where(call))
    found = await call.asked(
        ("usage", tuple(by), chosen.since, chosen.until, tuple(sorted(chosen.where.items()))),
        lambda connection: usage_queries.sums(connection, by, chosen, zone),
    )
    rows = [
        {column: shown_key(name) if column == "key" else name for column, name in zip(by, names, strict=True)}
        | one.figures
        for names, one in sorted(found.items())
    ]
    return _table(call, [*by, *FIGURES], "rows", rows)


async def requests(call: Call) -> object:
    limit, before = number(call, "limit", 100), number(call, "before", None)
    assert limit is not None
    chosen = Chosen(instant(call, "since", 0, call.zone), instant(call, "until", FOREVER, call.zone), _where(call))
    most = min(max(limit, 1), MAX_ROWS)
    rows = await call.ask_ledger(lambda connection: usage_queries.latest(connection, chosen, most, before))
    return _table(call, usage_queries.ROW, "requests", list(map(_shown, rows)))


async def live(call: Call) -> object:
    """Requests as they end, as server-sent events."""
    return Text("text/event-stream", _events(call, _where(call)), {"X-Accel-Buffering": "no"})


async def _events(call: Call, where: Mapping[str, Sequence[str]]) -> AsyncGenerator[bytes]:
    last = await call.ask_ledger(usage_queries.newest)
    yield b": requests as they end\n\n"
    while True:
        await asyncio.sleep(LIVE)
        newest = await call.ask_ledger(usage_queries.newest)
        find = partial(usage_queries.latest, chosen=Chosen(where=where), limit=MAX_LIVE, after=last)
        rows = await call.ask_ledger(find) if newest != last else []
        last = newest
        if not call.may_go_on():
            return
        yield b":\n\n"  # Who has left is noticed.
        for row in reversed(rows):
            yield f"id: {row['number']}\ndata: {json.dumps(_shown(row))}\n\n".encode()


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"key": shown_key(row["key"]), "estimated": bool(row["estimated"])}


def _where(call: Call) -> dict[str, tuple[str, ...]]:
    """The filters of a request; without the scope admin, its own key is one of them. Raises Problem or RefusedError."""
    where = {name: tuple(call.query[name].split(",")) for name in FILTERS if call.query.get(name)}
    if not call.admin:
        own = (call.signed_in.name,)
        if where.get("key", own) != own:
            access.check_admin(call.signed_in)
        return where | {"key": own}
    if "key" in where:
        where["key"] = tuple(NO_KEY if name in (shown_key(NO_KEY), "-") else name for name in where["key"])
    return where


def instant(call: Call, name: str, default: float, zone: tzinfo) -> float:
    """A time in a query: Unix seconds, RFC 3339, a day or a month, which `until` includes. Raises Problem."""
    text = call.query.get(name, "")
    if not text:
        return default
    try:
        if text.replace(".", "", 1).isdecimal() and len(text) > len("202611"):
            return min(float(text), FOREVER)
        if len(text) == len("2026-11"):
            first = date.fromisoformat(f"{text}-01")
            day = first if name == "since" else (first + timedelta(days=31)).replace(day=1)
            return datetime.combine(day, datetime.min.time(), zone).timestamp()
        if len(text) == len("2026-11-26"):
            day = date.fromisoformat(text) + timedelta(days=name == "until")
            return datetime.combine(day, datetime.min.time(), zone).timestamp()
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError):
        raise Problem(
            400, f"{name} is not a time: write it as in 2026-11, 2026-11-26 or 2026-11-26T09:00:00Z"
        ) from None


def number(call: Call, name: str, default: int | None) -> int | None:
    text = call.query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise Problem(400, f"{name} is not a whole number")
    return int(text)


def _table(call: Call, columns: Sequence[str], name: str, rows: list[dict[str, Any]]) -> object:
    """Rows as JSON, or as CSV. Raises Problem."""
    match call.query.get("format", "json"):
        case "json":
            return {name: rows}
        case "csv":
            out = io.StringIO()
            writer = csv.writer(out)
            writer.writerow(columns)
            cells = ([row[column] for column in columns] for row in rows)
            writer.writerows([harmless(cell) if isinstance(cell, str) else cell for cell in line] for line in cells)
            file = call.request.path.rpartition("/")[2]
            disposition = {"Content-Disposition": f'attachment; filename="{file}.csv"'}
            return Text("text/csv; charset=utf-8", out.getvalue(), disposition)
        case _:
            raise Problem(400, "format is not one of json, csv")
