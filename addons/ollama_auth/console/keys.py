"""Keys. Administrators see and change all of them; any other key sees itself."""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from .. import clock
from ..auth import keys_editor
from ..auth.key_fields import CREDENTIALS, LIMITS, RESERVED, ROWS, FieldError, describe, key_name, time_of
from ..auth.keys import Principal
from ..auth.keys_file import KeysFileError
from ..auth.periods import Calendar
from ..telemetry import usage_queries
from ..telemetry.status_server import Problem
from ..telemetry.usage_db import DAY
from ..telemetry.usage_queries import Chosen
from ..units import parse_duration
from . import access
from .router import Call

GRACE = "24h"
"""How long the old key goes on working after `rotate`, where nothing else is said."""
FORM = [
    {"name": field.name, "label": field.name.replace("_", " ").capitalize(), "unit": field.unit}
    | {"kind": "choices" if field.choices else "words" if field.many else "number" if field.unit else "text"}
    | {"meaning": field.option.meaning, "default": field.option.default}
    | {"choices": field.choices or {}, "column": field.column}
    for field in ROWS
    if field.option
]
"""The fields that can be set, for the page's form and tables."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What keys used, by name: sums of today and of the last 30 days, and when each was used last."""

    today: Mapping[str, dict[str, Any]]
    month: Mapping[str, dict[str, Any]]
    last_used: Mapping[str, float]


def facts(call: Call, who: Principal) -> dict[str, Any]:
    """What may be shown of a principal: nothing secret."""
    return describe(who, call.ring) | {"admin": access.is_admin(who)}


async def shown(call: Call, principals: Iterable[Principal]) -> list[dict[str, Any]]:
    """Principals with what they used, and what their limits leave."""
    now, calendar = clock.wall(), Calendar(call.zone)
    today, month = calendar.day(now), calendar.month(now)
    figures = await call.asked(("figures", today), partial(_figures, today.start, now - 30 * DAY))
    minute = await call.ask_ledger(partial(_last_minute, now))
    running: Counter[str] = (await call.console.monitor.now())["running"]
    used = {
        "requests_per_minute": lambda name: minute.get(name, 0),
        "concurrent_requests": lambda name: running[name],
        "tokens_per_day": lambda name: call.ledger.tokens(name, today.start, today.end),
        "tokens_per_month": lambda name: call.ledger.tokens(name, month.start, month.end),
    }
    ends = {"tokens_per_day": today.end, "tokens_per_month": month.end}
    return [
        facts(call, one)
        | {
            "limits": {
                limit.name: {"limit": most, "used": (spent := used[limit.name](one.name)), "left": max(0, most - spent)}
                | {"until": time_of(ends.get(limit.name))}
                for limit in LIMITS
                if (most := limit.of(one)) is not None
            },
            "last_used": figures.last_used.get(one.name),
            "today": figures.today.get(one.name, NOTHING),
            "month": figures.month.get(one.name, NOTHING),
        }
        for one in principals
    ]


NOTHING = {"requests": 0, "refused": 0, "failed": 0, "prompt_tokens": 0, "completion_tokens": 0}


def _figures(today: float, month: float, connection: sqlite3.Connection) -> Figures:
    last = connection.execute(
        "SELECT key, max(seen) FROM groups JOIN (SELECT group_id, max(ended) AS seen FROM requests GROUP BY 1 "
        "UNION ALL SELECT group_id, max(hour) FROM hours GROUP BY 1) ON groups.id = group_id GROUP BY 1"
    ).fetchall()
    return Figures(_sums_since(connection, today), _sums_since(connection, month), dict(last))


def _sums_since(connection: sqlite3.Connection, since: float) -> dict[str, dict[str, Any]]:
    sums = usage_queries.sums(connection, ["key"], Chosen(since))
    of = attrgetter(*NOTHING)
    return {name: dict(zip(NOTHING, of(one), strict=True)) for (name,), one in sums.items()}


def _last_minute(now: float, connection: sqlite3.Connection) -> dict[str, int]:
    """Requests of each key that were not refused in the last minute."""
    rows = connection.execute(
        "SELECT key, count(*) FROM requests JOIN groups ON groups.id = group_id "
        "WHERE ended >= ? AND time >= ? AND outcome <> 'refused' GROUP BY 1",
        (now - 60, now - 60),
    )
    return dict(rows.fetchall())


async def list_all(call: Call) -> object:
    every = call.ring.principals.values() if call.admin else [call.signed_in]
    file = call.settings.keys_file if call.admin else None
    return {"file": file, "now": time.time(), "keys": await shown(call, every)}


async def me(call: Call) -> object:
    address = call.console.gate.address
    gate = {"scheme": "https" if call.settings.tls else "http", "port": address and address[1]}
    [mine] = await shown(call, [call.signed_in])
    return mine | {"gate": gate, "fields": FORM}


async def show(call: Call) -> object:
    if not call.admin and call.name != call.signed_in.name:
        access.check_admin(call.signed_in)
    return (await shown(call, [_known(call)]))[0]


async def add(call: Call) -> object:
    fields = _object(call)
    name = fields.pop("name", None)
    try:
        name = key_name(name)
    except FieldError as fault:
        raise Problem(400, f"name {fault}") from None
    _check(fields)
    if name in call.ring.principals:
        raise Problem(409, f"there is a key {name} already: choose another name, or rotate it")
    key = await _change(call, name, keys_editor.add, fields)
    call.logged = f"/console/keys/{name}"
    return {"key": key, **facts(call, _known(call, name))}


async def edit(call: Call) -> object:
    return await _edited(call, _object(call))


async def revoke(call: Call) -> object:
    await _change(call, _in_file(call), keys_editor.revoke)
    return {"name": call.name, "revoked": True}


async def disable(call: Call) -> object:
    return await _edited(call, {"disabled": True})


async def enable(call: Call) -> object:
    return await _edited(call, {"disabled": None})


async def _edited(call: Call, fields: dict[str, Any]) -> object:
    name = _in_file(call)
    _check(fields)
    await _change(call, name, keys_editor.edit, fields)
    return facts(call, _known(call))


async def rotate(call: Call) -> object:
    name, text = _in_file(call), (_object(call) if call.body is not None else {}).get("grace", GRACE)
    grace = parse_duration(text) if isinstance(text, str) else None
    if grace is None:
        raise Problem(400, "grace is not a span of time; write it as in 90m, 24h or 30d, or 0 for none")
    made: keys_editor.Rotated = await _change(call, name, keys_editor.rotate, grace)
    return {"key": made.key, **facts(call, _known(call))}


def _object(call: Call) -> dict[str, Any]:
    if not isinstance(call.body, dict):
        raise Problem(400, "the body is not a JSON object with fields of a key")
    return dict(call.body)


def _known(call: Call, name: str | None = None) -> Principal:
    """The principal that the path names. Raises Problem."""
    found = call.ring.principals.get(name or call.name)
    if found is None:
        raise Problem(404, "no key has this name: GET /console/keys lists them")
    return found


def _in_file(call: Call) -> str:
    """The name that the path names, if its key is in the keys file. Raises Problem."""
    name = _known(call).name
    if name in RESERVED:
        raise Problem(409, f"{name} is {RESERVED[name]}: change it there, and restart the gate")
    call.logged = call.request.path.replace(call.raw_name, name)
    return name


def _check(fields: Mapping[str, Any]) -> None:
    """Raises Problem where the values are not those of fields of a key."""
    if fixed := sorted(fields.keys() & CREDENTIALS - {"ssh_ed25519"}):
        raise Problem(400, f"{fixed[0]} can't be set here: the gate makes keys itself")
    try:
        keys_editor.checked(fields)
    except KeysFileError as error:
        raise Problem(400, "; ".join(error.faults)) from None


async def _change(call: Call, name: str, editing: Any, *arguments: Any) -> Any:
    """Change the keys file as `editing` does, and put it in force. Raises Problem."""
    path = call.settings.keys_file
    if path is None:
        raise Problem(
            409, "there is no keys file: set OLLAMA_KEYS_FILE to a path, such as keys.toml, and restart the gate"
        )
    try:
        made = await asyncio.to_thread(partial(editing, path, name, *arguments))
    except KeysFileError as error:
        raise Problem(409, str(error)) from None
    await call.console.gate.reload_keys()
    return made
