"""What happens now, and what happened in a period."""

import sqlite3
import time
from collections import defaultdict
from functools import partial
from re import fullmatch
from typing import Any

from ..exchange import Outcome
from ..telemetry import figures, usage_periods, usage_queries
from ..telemetry.status_server import Problem
from ..telemetry.usage_db import DAY, HOUR, NO_KEY, QUARTER
from ..telemetry.usage_periods import Groups, Period
from ..telemetry.usage_queries import NAMES, Sums, added
from .router import Call

RANGES = {"now": (10, 60), "hour": (60, 60), "day": (900, 96), "week": (2 * HOUR, 84), "month": (DAY, 30)}
"""Steps of the plots: (seconds, how many)."""
MAX_SHOWN = 100
"""Rows of a table."""
MAX_NAMES = 5
"""Names beside a reason."""
HELD_BACK = 60
"""Seconds after which somebody who was refused for a limit counts as held back no more."""


async def state(call: Call) -> object:
    """What the frame of the page shows."""
    return await call.console.monitor.state() | ({} if call.admin else {"upstream": None})


async def overview(call: Call) -> object:
    name = call.query.get("range", "hour")
    if name not in RANGES:
        raise Problem(400, f"range is not one of {', '.join(RANGES)}")
    offset = call.query.get("offset", "0")
    if not fullmatch("-?[0-9]{1,5}", offset):
        raise Problem(400, "offset is not the seconds that your clock is ahead of UTC")
    step, count = RANGES[name]
    now = time.time()
    ahead = int(offset) // QUARTER * QUARTER  # As in all time zones; others would only be asked for anew each time.
    end = ((now + ahead) // step + 1) * step - ahead
    chosen = Period(end - step * count, step, count)
    monitor = call.console.monitor
    known = await call.asked(("overview", name, chosen.since), lambda connection: _past(connection, chosen))
    buckets = [dict(bucket) for bucket in known["buckets"]]
    present = await monitor.now()
    running = [(now - row["seconds"], row["ttft_ms"], row["tokens"]) for row in present["in_flight"]]
    usage_periods.add_running(buckets, chosen, running, now)
    held = await call.asked("held", partial(usage_periods.held_back, now - HELD_BACK, MAX_SHOWN))
    return {
        **await monitor.state(),
        **known,
        "buckets": [bucket | {"at_once": round(bucket["at_once"], 2)} for bucket in buckets],
        "step": step,
        "first": min(monitor.started, known["first"] or monitor.started),
        **present,
        "held": [*_throttled(call), *held],
    }


def _past(connection: sqlite3.Connection, chosen: Period) -> dict[str, Any]:
    exact = chosen.step < HOUR
    buckets = usage_periods.buckets(connection, chosen)
    if not exact:
        usage_periods.hourly(connection, chosen, buckets)
    groups = usage_periods.groups(connection, chosen.since, exact=exact)
    ttft = usage_periods.percentiles(connection, "0", "ttft_ms", chosen, (0.5, 0.95))
    return {
        "first": usage_queries.ends(connection, "hours", "hour")[0],
        "buckets": buckets,
        "sums": added(groups.values()).figures | {"ttft_ms": ttft[0][1:] if ttft else None},
        "keys": _table("key", groups),
        "models": _table("model", {names: one for names, one in groups.items() if names[1]}),
        "reasons": _reasons(groups),
    }


def _table(by: str, groups: Groups) -> list[dict[str, Any]]:
    """Sums by a column, the busiest first."""
    found: defaultdict[str, list[Sums]] = defaultdict(list)
    for names, one in groups.items():
        found[names[NAMES.index(by)]].append(one)
    table = [{by: shown_key(name) if by == "key" else name, **added(some).figures} for name, some in found.items()]
    return sorted(table, key=lambda row: (-row["requests"], row[by]))[:MAX_SHOWN]


def _reasons(groups: Groups) -> list[dict[str, Any]]:
    """Why requests did not succeed: whose, and of which models."""
    found: defaultdict[tuple[str, str], list[tuple[str, str, int]]] = defaultdict(list)
    for (key, model, outcome, reason), one in sorted(groups.items(), key=lambda group: -group[1].requests):
        if outcome != Outcome.ANSWERED:
            found[outcome, reason].append((shown_key(key), model, one.requests))
    table: list[dict[str, Any]] = []
    for (outcome, reason), some in found.items():
        keys, models, requests = zip(*some, strict=True)
        table.append({
            "outcome": outcome, "reason": reason, "requests": sum(requests),
            "keys": list(dict.fromkeys(keys))[:MAX_NAMES],
            "models": list(dict.fromkeys(filter(None, models)))[:MAX_NAMES],
        })  # fmt: skip
    return sorted(table, key=lambda row: -row["requests"])[:MAX_SHOWN]


def shown_key(name: str) -> str:
    """The name of a key, or what stands for requests without a known one."""
    return figures.NO_KEY if name == NO_KEY else name


def _throttled(call: Call) -> list[dict[str, Any]]:
    """The networks that send too many wrong keys."""
    authorizer = call.console.config.authorizer
    found = authorizer.throttle.throttled() if authorizer else {}
    return [{"key": None, "client": one, "reason": "throttled", "requests": keys} for one, keys in found.items()]
