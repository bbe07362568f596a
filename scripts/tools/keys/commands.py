"""The commands of scripts/keys. Each takes parsed arguments and returns a Result.

All raise ToolError and keys_file.KeysFileError; then the file is as it was.
"""

import argparse
import hashlib
import time
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ollama_auth.auth import keys_editor, keys_file, policy
from ollama_auth.auth.key_fields import FIELDS, OF_PRINCIPAL, describe, normalized, time_of
from ollama_auth.auth.keys import KeyRing, Principal, new_key
from ollama_auth.ollama_api.model_names import reference
from ollama_auth.ollama_api.routes import route

from ..terminal import ToolError

UNSET = {field.option.name: field.name for field in FIELDS.values() if field.option}
"""The fields of a key that options set, by the names of these options."""


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


def new(_: argparse.Namespace) -> Result:
    """Make a key without storing it."""
    key = new_key()
    digest = hashlib.sha256(key.encode()).hexdigest()
    notes = ["set OLLAMA_API_KEY to it, or store its digest in a keys file:", f'  sha256 = "{digest}"']
    return Result({"key": key, "sha256": digest}, key, notes)


def add(arguments: argparse.Namespace) -> Result:
    """Add a new key, or an ssh key, under a name."""
    file, name = arguments.file, arguments.name
    is_new = not file.exists()
    key = keys_editor.add(file, name, {"ssh_ed25519": arguments.ssh, **values(arguments)})
    how = "the key is shown only now" if key else "with OLLAMA_AUTH=1 the ollama command line signs as that"
    notes = [f"{name} is in {file} now; {how}"]
    if is_new:
        notes.append(f"the gate reads it with OLLAMA_KEYS_FILE={file.absolute()}")
    return Result({"file": str(file), "name": name, "key": key}, key or "", notes)


def values(arguments: argparse.Namespace) -> dict[str, object]:
    """The fields that options set."""
    given = {field: getattr(arguments, field) for field in UNSET.values()}
    return {field: value for field, value in given.items() if value is not None}


def changes(arguments: argparse.Namespace) -> dict[str, object]:
    """The fields that `edit` changes; None is removed."""
    return values(arguments) | dict.fromkeys(UNSET[option] for option in arguments.unset)


def edit(arguments: argparse.Namespace) -> Result:
    """Change fields of a key."""
    fields = changes(arguments)
    keys_editor.edit(existing(arguments.file), arguments.name, fields)
    return changed(arguments, "has changed: " + ", ".join(fields))


def note(arguments: argparse.Namespace) -> Result:
    """Change or remove the note on a key."""
    keys_editor.edit(existing(arguments.file), arguments.name, {"note": arguments.note})
    return changed(arguments, "has a note" if arguments.note else "has no note")


def disable(arguments: argparse.Namespace) -> Result:
    """Have a key refused."""
    keys_editor.edit(existing(arguments.file), arguments.name, {"disabled": True})
    return changed(arguments, "is disabled: its next request is denied")


def enable(arguments: argparse.Namespace) -> Result:
    """End what `disable` began."""
    keys_editor.edit(existing(arguments.file), arguments.name, {"disabled": None})
    return changed(arguments, "is enabled")


def changed(arguments: argparse.Namespace, what: str) -> Result:
    """Say what happened to a key, and with --json what it is now."""
    return Result(show(arguments).facts, "", [f"{arguments.name} {what} ({arguments.file})"])


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


def list_keys(arguments: argparse.Namespace) -> Result:
    """List the names with their permissions."""
    ring, warnings = loaded(arguments)
    facts = [describe(who, ring) for who in ring.principals.values()]
    rows = [HEADINGS, *(row(fact) for fact in facts)]
    return Result(facts, aligned(rows) if facts else "", warnings)


def show(arguments: argparse.Namespace) -> Result:
    """Show one name with its permissions, a line for each."""
    ring, warnings = loaded(arguments)
    fact = describe(named(arguments, ring), ring)
    lines = zip((heading.lower() for heading in HEADINGS), row(fact), strict=True)
    return Result(fact, aligned([line for line in lines if line[1]]), warnings)


def loaded(arguments: argparse.Namespace) -> tuple[KeyRing, Sequence[str]]:
    """Read the file; return (its keys, warnings)."""
    keys, warnings = keys_file.load(existing(arguments.file))
    return KeyRing(keys), warnings


def named(arguments: argparse.Namespace, ring: KeyRing) -> Principal:
    """Whose name is asked for. Raises KeysFileError."""
    name = normalized(arguments.name)
    keys_editor.check_known(arguments.file, name, ring)
    return ring.principals[name]


HEADINGS = ("NAME", "KIND", "SCOPES", "MODELS", "LIMITS", "EXPIRES", "NOTE")


def row(fact: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table of `list`."""
    limits = [
        f"{fact[field.name]}{field.unit}" if field.unit else f"{field.name} {fact[field.name]}"
        for field in OF_PRINCIPAL
        if not field.column and fact[field.name]
    ]
    return (
        fact["name"],
        fact["kind"]
        + (" (disabled)" if fact["disabled"] else "")
        + (f" (old one until {fact['old_key_until']})" if fact["old_key_until"] else ""),
        " ".join(fact["scopes"]),
        " ".join(fact["models"] or ["all"]),
        ", ".join(limits) or "none",
        (fact["expires"] or "never") + (" (expired)" if fact["expired"] else ""),
        fact["note"] or "",
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The rows as text, in columns; without the last one if it is empty but for its heading."""
    columns = list(zip(*rows, strict=True))
    columns = columns if any(columns[-1][1:]) else columns[:-1]
    padded = []
    for column in columns:
        most = max(map(width, column))
        padded.append([text + " " * (most - width(text)) for text in column])
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def width(text: str) -> int:
    """The columns that a text takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.category(one) in ("Mn", "Me") for one in text)


def check(arguments: argparse.Namespace) -> Result:
    """Check the file for faults, or a request against the permissions of a name."""
    file = arguments.file
    ring, warnings = loaded(arguments)
    if arguments.name is None:
        number = len(ring.principals)
        facts = {"file": str(file), "keys": number, "warnings": warnings}
        return Result(facts, f"{file}: {number} key{'' if number == 1 else 's'}, no fault", warnings)
    return check_request(arguments, named(arguments, ring))


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
