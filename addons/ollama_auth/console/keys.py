"""Keys: all of them for administrators, who may change them; for anyone else the one that asks."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from .. import clock
from ..auth import keys_editor, keys_file
from ..auth.keys import Key, KeyRing, Principal, Scope
from ..auth.keys_file import FieldError, KeysFileError
from ..telemetry.status_server import Problem
from ..units import parse_duration
from . import access
from .router import Call

GRACE = "24h"
"""How long the old key goes on working after `rotate`, where nothing else is said."""


def describe(principal: Principal, ring: KeyRing) -> dict[str, Any]:
    """What may be shown of a principal: nothing secret."""
    keys, now = ring.keys_of(principal.name), clock.wall()
    until = next((key.until for key in keys if key.until is not None and key.until > now), None)
    return {
        "name": principal.name,
        "kind": _kind(principal, keys),
        "admin": access.is_admin(principal),
        "scopes": [scope for scope in Scope if scope in principal.scopes],
        "models": principal.models,
        "requests_per_minute": principal.requests_per_minute,
        "concurrent_requests": principal.concurrent_requests,
        "tokens_per_day": principal.tokens_per_day,
        "expires": time_of(principal.expires),
        "expired": principal.expires is not None and principal.expires <= now,
        "disabled": principal.disabled,
        "note": principal.note,
        "old_key_until": time_of(until),
    }


def _kind(principal: Principal, keys: list[Key]) -> str:
    if principal.name in keys_file.RESERVED:
        return "environment"
    return "ssh" if any(key.ssh_ed25519 for key in keys) else "key"


def time_of(seconds: float | None) -> str | None:
    """Seconds since 1970 in RFC 3339."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def list_all(call: Call) -> object:
    ring, who = call.ring, call.signed_in
    shown = ring.principals.values() if call.admin else [who]
    return {"file": call.settings.keys_file if call.admin else None, "keys": [describe(one, ring) for one in shown]}


async def show(call: Call) -> object:
    if not call.admin and call.name != call.signed_in.name:
        access.check_admin(call.signed_in)
    return describe(_known(call), call.ring)


async def add(call: Call) -> object:
    fields = _object(call)
    name = fields.pop("name", None)
    try:
        name = keys_file.key_name(name)
    except FieldError as fault:
        raise Problem(400, f"name {fault}") from None
    _check(fields)
    if name in call.ring.principals:
        raise Problem(409, f"there is a key {name} already: choose another name, or rotate it")
    key = await _change(call, name, keys_editor.add, fields)
    call.logged = f"/console/keys/{name}"
    return {"key": key, **describe(_known(call, name), call.ring)}


async def edit(call: Call) -> object:
    name, fields = _in_file(call), _object(call)
    _check(fields)
    await _change(call, name, keys_editor.edit, fields)
    return describe(_known(call), call.ring)


async def revoke(call: Call) -> object:
    await _change(call, _in_file(call), keys_editor.revoke)
    return {"name": call.name, "revoked": True}


async def disable(call: Call) -> object:
    await _change(call, _in_file(call), keys_editor.disable)
    return describe(_known(call), call.ring)


async def enable(call: Call) -> object:
    await _change(call, _in_file(call), keys_editor.enable)
    return describe(_known(call), call.ring)


async def rotate(call: Call) -> object:
    name, text = _in_file(call), (_object(call) if call.body is not None else {}).get("grace", GRACE)
    grace = timedelta() if text == "0" else parse_duration(text) if isinstance(text, str) else None
    if grace is None:
        raise Problem(400, "grace is not a span of time; write it as in 90m, 24h or 30d, or 0 for none")
    made: keys_editor.Rotated = await _change(call, name, keys_editor.rotate, grace)
    return {"key": made.key, **describe(_known(call), call.ring)}


def _object(call: Call) -> dict[str, Any]:
    if not isinstance(call.body, dict):
        raise Problem(400, "the body is not a JSON object with fields of a key")
    return dict(call.body)


def _known(call: Call, name: str | None = None) -> Principal:
    """The principal that the path names. Raises Problem."""
    found = call.ring.principals.get(name or call.name)
    if found is None:
        raise Problem(404, "there is no key of that name")
    return found


def _in_file(call: Call) -> str:
    """The name that the path names, if its key is in the keys file. Raises Problem."""
    name = _known(call).name
    if name in keys_file.RESERVED:
        raise Problem(409, f"{name} is {keys_file.RESERVED[name]}: change it there, and restart the gate")
    call.logged = call.request.path.replace(call.raw_name, name)
    return name


def _check(fields: Mapping[str, Any]) -> None:
    """Raises Problem where the values are not those of fields of a key."""
    if fixed := sorted(fields.keys() & keys_editor.SECRETS - {"ssh_ed25519"}):
        raise Problem(400, f"{fixed[0]} can't be set here: the gate makes keys itself")
    dates = {"expires"} if isinstance(fields.get("expires"), str) else set()
    _, faults = keys_file.read_fields({f: v for f, v in fields.items() if v is not None and f not in dates})
    if faults:
        raise Problem(400, "; ".join(faults))
    if dates:
        try:
            keys_editor.expiry(fields["expires"])
        except FieldError as fault:
            raise Problem(400, f"expires {fault}") from None


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
