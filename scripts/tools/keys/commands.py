"""The commands of scripts/keys. Each takes parsed arguments and returns a Result.

All raise ToolError and keys_file.KeysFileError; then the file is as it was.
"""

import argparse
import hashlib
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ollama_auth.auth import keys_editor, keys_file, policy
from ollama_auth.auth.keys import Key, Principal, Scope, new_key
from ollama_auth.ollama_api.model_names import reference
from ollama_auth.ollama_api.routes import route
from ollama_auth.telemetry.access_log import utc

from ..terminal import ToolError


class Limit(NamedTuple):
    """A limit of a key: its field in the file, its option, and how it is shown."""

    field: str
    option: str
    meaning: str
    unit: str


LIMITS = (
    Limit("requests_per_minute", "--rpm", "requests a minute", "/min"),
    Limit("concurrent_requests", "--concurrent", "requests at once", " at once"),
    Limit("tokens_per_day", "--tokens-per-day", "tokens a day", " tokens/day"),
)


class Result(NamedTuple):
    """What a command prints: facts with --json, else text on standard output and notes on standard error."""

    facts: Any
    text: str = ""
    notes: Sequence[str] = ()
    status: int = 0


def existing(file: Path) -> Path:
    """Return the path if the file exists. Raises ToolError."""
    if not file.exists():
        raise ToolError(f"there is no {file}: `scripts/keys add NAME` makes it, --file PATH names another")
    return file


def time_of(seconds: float | None) -> str | None:
    """Seconds since 1970 in RFC 3339."""
    return None if seconds is None else utc(seconds, "seconds")


def new(_: argparse.Namespace) -> Result:
    """Make a key without storing it."""
    key = new_key()
    digest = hashlib.sha256(key.encode()).hexdigest()
    notes = ["set OLLAMA_API_KEY to it, or store its digest in a keys file:", f'  sha256 = "{digest}"']
    return Result({"key": key, "sha256": digest}, key, notes)


def add(arguments: argparse.Namespace) -> Result:
    """Add a new key, or an ssh key, under a name."""
    file, name = arguments.file, arguments.name
    fields = {
        "ssh_ed25519": arguments.ssh,
        "scopes": arguments.scope,
        "models": arguments.model,
        "expires": arguments.expires,
        **{limit.field: getattr(arguments, limit.field) for limit in LIMITS},
    }
    is_new = not file.exists()
    key = keys_editor.add(file, name, fields)
    how = "the key is shown only now" if key else "with OLLAMA_AUTH=1 the ollama command line signs as that"
    notes = [f"{name} is in {file} now; {how}"]
    if is_new:
        notes.append(f"the gate reads it with OLLAMA_KEYS_FILE={file.absolute()}")
    return Result({"file": str(file), "name": name, "key": key}, key or "", notes)


def revoke(arguments: argparse.Namespace) -> Result:
    """Remove all keys of a name."""
    file, name = existing(arguments.file), arguments.name
    keys_editor.revoke(file, name)
    return Result({"file": str(file), "name": name}, "", [f"{name} is no longer in {file}"])


def rotate(arguments: argparse.Namespace) -> Result:
    """Replace the key of a name; the old one works until the end of the grace."""
    file, name = existing(arguments.file), arguments.name
    key, until = keys_editor.rotate(file, name, arguments.grace)
    end = time_of(until.timestamp()) if until else None
    old = f"the old one works until {end}" if end else "no old one works any more"
    facts = {"file": str(file), "name": name, "key": key, "old_key_until": end}
    return Result(facts, key, [f"{name} has a new key, which is shown only now; {old}"])


def show(arguments: argparse.Namespace) -> Result:
    """List the names with their permissions."""
    keys, warnings = keys_file.load(existing(arguments.file))
    facts = [describe(list(group)) for _, group in groupby(keys, lambda key: key.principal.name)]
    rows = [("NAME", "KIND", "SCOPES", "MODELS", "LIMITS", "EXPIRES"), *(row(fact) for fact in facts)]
    return Result(facts, aligned(rows) if facts else "", warnings)


def describe(keys: Sequence[Key]) -> dict[str, Any]:
    """The fields of a name that are not secret. `keys` are its current key and perhaps the previous one."""
    key, who, now = keys[0], keys[0].principal, time.time()
    until = next((key.until for key in keys if key.until is not None and key.until > now), None)
    return {
        "name": who.name,
        "kind": "ssh" if key.ssh_ed25519 else "key",
        "scopes": [scope for scope in Scope if scope in who.scopes],
        "models": who.models,
        **{limit.field: getattr(who, limit.field) for limit in LIMITS},
        "expires": time_of(who.expires),
        "expired": who.expires is not None and who.expires <= now,
        "old_key_until": time_of(until),
        "disabled": who.disabled,
        "note": who.note,
    }


def row(fact: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table of `list`."""
    limits = [f"{fact[limit.field]}{limit.unit}" for limit in LIMITS if fact[limit.field]]
    return (
        fact["name"],
        fact["kind"]
        + (" (disabled)" if fact["disabled"] else "")
        + (f" (old one until {fact['old_key_until']})" if fact["old_key_until"] else ""),
        " ".join(fact["scopes"]),
        " ".join(fact["models"] or ["all"]),
        ", ".join(limits) or "none",
        (fact["expires"] or "never") + (" (expired)" if fact["expired"] else ""),
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The rows as text, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def check(arguments: argparse.Namespace) -> Result:
    """Check the file for faults, or a request against the permissions of a name."""
    file = arguments.file
    keys, warnings = keys_file.load(existing(file))
    names = keys_editor.owners(keys)
    if arguments.name is None:
        count = f"{len(names)} key{'' if len(names) == 1 else 's'}"
        facts = {"file": str(file), "keys": len(names), "warnings": warnings}
        return Result(facts, f"{file}: {count}, no fault", warnings)
    keys_editor.check_known(file, arguments.name, names)
    return check_request(arguments, next(key.principal for key in keys if key.principal.name == arguments.name))


def check_request(arguments: argparse.Namespace, who: Principal) -> Result:
    """Decide on a request as the gate would."""
    found = route(arguments.method.upper().encode(), arguments.path.encode())
    denial = policy.check_route(who, found, time.time())
    if denial is None and arguments.model is not None:
        model = reference(arguments.model)
        if model is None:
            raise ToolError("MODEL is not a valid name of a model: write it as `ollama list` does")
        denial = policy.check_models(who, [model])
    request = " ".join(filter(None, [arguments.method.upper(), arguments.path, arguments.model]))
    facts = {"name": who.name, "request": request, "class": found.route_class, "allowed": denial is None}
    if denial:
        facts |= {"status": denial.status, "reason": denial.reason, "message": denial.message}
        text = f"{who.name}: {request} gets {denial.status} ({denial.reason}): {denial.message}"
        return Result(facts, text, status=1)
    notes = []
    if who.models is not None and arguments.model is None and found.takes_model:
        notes.append(f"its model has to be one of {' '.join(who.models)}; name it as MODEL to see")
    return Result(facts, f"{who.name}: {request} is let in ({found.route_class})", notes)
