"""Makes, lists and revokes the keys of a keys file, which the gate reads while it runs.

What is to be piped on goes to standard output, what a person should know to standard error. A key is shown once: the
file holds its digest. A change keeps comments and order, and leaves the whole old file or the whole new one.
"""

import argparse
import errno
import hashlib
import json
import os
import re
import secrets
import signal
import stat
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ollama_auth.auth import keys_file, policy
from ollama_auth.auth.keys import Key, Principal, Scope
from ollama_auth.ollama_api.model_names import reference
from ollama_auth.ollama_api.routes import route
from ollama_auth.units import parse_duration

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import AoT, Table

HEADER = (
    "# Who may use the gate: made by scripts/keys, and to be edited by hand. It holds digests of keys, never a key.\n"
)
PATIENCE = 30
"""Seconds to wait for another writer."""
MAX_PUBLIC_KEY = 64 * 1024
NUMBER = re.compile(r"-?[0-9]{1,18}")
LIMITS = {"requests_per_minute": "/min", "concurrent_requests": " at once", "tokens_per_day": " tokens/day"}
OPTIONS_OF_LIMITS = {
    "--rpm": "requests a minute",
    "--concurrent": "requests at once",
    "--tokens-per-day": "tokens a day",
}
REMEDIES = {
    errno.EACCES: "run this as the user whom the file belongs to",
    errno.EPERM: "run this as the user whom the file belongs to",
    errno.ENOENT: "make the directory first",
    errno.EROFS: "change it where it is not mounted read-only",
    errno.EBUSY: "it is mounted alone, so that it can't be replaced; mount its directory instead",
}
EXAMPLES = """\
examples:
  scripts/keys add alice --expires 30d --rpm 60
  scripts/keys add reader --scope infer list --model llama3.2 'qwen*'
  scripts/keys add bob-laptop --ssh ~/.ollama/id_ed25519.pub
  scripts/keys rotate alice --grace 24h
  scripts/keys check alice DELETE /api/delete llama3.2
  OLLAMA_API_KEY=$(scripts/keys new)

exit status: 0 done; 1 not done, or check found a fault or a refusal; 2 a command line that can't be understood
"""
STYLE: dict[str, Any] = {
    "epilog": EXAMPLES,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "allow_abbrev": False,
}


class Problem(Exception):
    """Why nothing was done, and the remedy; never holds a secret."""


class Answer(NamedTuple):
    """What a command found out: facts for --json, text for standard output, notes for standard error."""

    facts: Any
    text: str = ""
    notes: Sequence[str] = ()
    status: int = 0


# The file: read, changed by one at a time, replaced whole.


def read(file: Path) -> tuple[str, tuple[Key, ...]]:
    """(the text, the keys) of a file that may be about to be made. Raises KeysFileError."""
    if not file.exists():
        return "", ()
    data, _ = keys_file.read(file)
    if not data.strip():
        return "", ()
    keys = keys_file.parse(data, str(file))
    return data.decode("utf-8-sig"), keys


def existing(file: Path) -> Path:
    """The file, if it is there. Raises Problem."""
    if not file.exists():
        raise Problem(f"there is no {file}: `scripts/keys add NAME` makes it, --file PATH names another")
    return file


def change(file: Path, name: str, edit: Callable[[str, Sequence[str]], str]) -> None:
    """Puts the text that `edit` makes of a file's text and names in its place, unless that changes more than `name`."""
    target = Path(os.path.realpath(file))
    with locked(target):
        text, before = read(file)
        after = edit(text, owners(before))
        if "\r\n" in text:
            after = re.sub("\r?\n", "\r\n", after)
        try:
            changed = keys_file.parse(after.encode(), str(file))
        except keys_file.KeysFileError as error:
            raise Problem(f"{file} was left alone, as it would become faulty: {error.faults[0]}") from None
        if others(before, name) != others(changed, name):
            raise Problem(f"{file} was left alone, as others than {name} would change: edit it by hand")
        replace(target, after.encode())


def others(keys: Sequence[Key], name: str) -> list[Key]:
    return [key for key in keys if key.principal.name != name]


def owners(keys: Sequence[Key]) -> list[str]:
    return list(dict.fromkeys(key.principal.name for key in keys))


def known(name: str, names: Sequence[str]) -> str:
    """The name, if it is one of those. Raises Problem."""
    if name in names:
        return name
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else "`scripts/keys list` shows all"
    raise Problem(f"there is no key {name}: {hint}")


if sys.platform == "win32":
    import msvcrt

    def try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """One writer at a time. The lock is on a file beside it, since the file itself is replaced."""
    lock = file.with_name(f".{file.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                try_lock(descriptor)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    raise Problem(f"another program has held {lock} for {PATIENCE} s: end it, then try again") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def replace(file: Path, data: bytes) -> None:
    """All of the new or all of the old, whatever happens. Mode and owner stay; a new file is for its owner alone."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
            if file.exists():
                keep_rights(Path(temporary), file.stat())
            opened.flush()
            os.fsync(descriptor)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    with suppress(OSError):  # Windows opens no directories.
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def keep_rights(file: Path, wanted: os.stat_result) -> None:
    found = file.stat()
    if sys.platform != "win32" and (found.st_uid, found.st_gid) != (wanted.st_uid, wanted.st_gid):
        os.chown(file, wanted.st_uid, wanted.st_gid)
    file.chmod(stat.S_IMODE(wanted.st_mode))


# The text: whatever is not part of the one key that changes stays as it is.


def appended(text: str, entry: Mapping[str, object]) -> str:
    import tomlkit

    return f"{text.rstrip() or HEADER.rstrip()}\n\n{tomlkit.dumps({'keys': [entry]}).rstrip()}\n"


def without(text: str, name: str) -> str:
    """The text without one key. The comments above it and below it stay."""
    from tomlkit.items import Whitespace

    document, keys, index = find(text, name)
    tail = cut_tail(keys[index])
    del keys[index]
    body = keys[index - 1].value.body if index else document.body
    end = len(body) if index else next(place for place, (key, _) in enumerate(body) if key)
    if end and tail and all(isinstance(item, Whitespace) for _, item in (body[end - 1], tail[0])):
        del tail[0]  # One blank line is enough.
    if not keys:
        del body[end]  # It would be written as keys = [], below which no key can be added.
    body[end:end] = tail
    after = document.as_string()
    return after if after.strip() else HEADER


def updated(text: str, name: str, update: Callable[["Table"], None]) -> str:
    """The text with one key changed."""
    document, keys, index = find(text, name)
    tail = cut_tail(keys[index])
    update(keys[index])
    keys[index].value.body.extend(tail)
    return document.as_string()


def find(text: str, name: str) -> "tuple[TOMLDocument, AoT, int]":
    """(the file, the keys in it, which one is that of the name)."""
    import tomlkit
    from tomlkit.items import AoT

    document = tomlkit.parse(text)
    keys = document["keys"]
    if not isinstance(keys, AoT):
        raise Problem("the file lists its keys as keys = [...]: begin each with a line [[keys]], then try again")
    return document, keys, next(index for index, key in enumerate(keys) if key["name"] == name)


def cut_tail(table: "Table") -> list[Any]:
    """Takes the comments and blank lines off its end, which tomlkit counts as its own and people as the next one's."""
    body = table.value.body
    end = max(place for place, (key, _) in enumerate(body) if key) + 1
    tail = body[end:]
    del body[end:]
    return tail


# Arguments.


def argument(read: Callable[[str], object]) -> Callable[[str], object]:
    """A type for argparse out of a function that raises FieldError."""

    def convert(text: str) -> object:
        try:
            return read(text)
        except keys_file.FieldError as fault:
            raise argparse.ArgumentTypeError(f"it {fault}") from None

    return convert


def duration(text: str) -> timedelta:
    if text == "0":
        return timedelta()
    if (span := parse_duration(text)) is None:
        raise keys_file.FieldError("is not a span of time; write it as in 90m, 24h, 30d or 8w")
    return span


def expiry(text: str) -> object:
    """A date, a date and time, or a span from now."""
    if (span := parse_duration(text)) is not None:
        value: object = in_future(span)
    else:
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            raise keys_file.FieldError(
                "is not a time; write it as in 30d, 2027-01-01 or 2027-01-01T00:00:00Z"
            ) from None
    if keys_file.instant(value) <= time.time():
        raise keys_file.FieldError("is over already; name a time to come")
    return value


def limit(text: str) -> object:
    return keys_file.limit(int(text) if NUMBER.fullmatch(text) else text)


def public_key(text: str) -> str:
    """A line of OpenSSH, given as it is or as the file that holds it."""
    line = text
    if not text.startswith("ssh-"):
        try:
            with Path(text).expanduser().open(encoding="utf-8", errors="replace") as file:
                line = file.read(MAX_PUBLIC_KEY)
        except (OSError, ValueError) as error:
            why = (isinstance(error, OSError) and error.strerror) or "it is not a path"
            raise keys_file.FieldError(f"can't be read ({why}); name a file such as ~/.ollama/id_ed25519.pub") from None
    keys_file.ssh_key(line)
    return line.strip()


def in_future(span: timedelta) -> datetime:
    return (datetime.now(UTC) + span).replace(microsecond=0)


def iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def make_key() -> tuple[str, str]:
    """(a new key, its digest in hex)."""
    key = f"sk-ollama-{secrets.token_hex(16)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


# The commands.


def new(_: argparse.Namespace) -> Answer:
    key, digest = make_key()
    notes = ["set OLLAMA_API_KEY to it, or store its digest in a keys file:", f'  sha256 = "{digest}"']
    return Answer({"key": key, "sha256": digest}, key, notes)


def add(arguments: argparse.Namespace) -> Answer:
    file, name = arguments.file, arguments.name
    key, digest = (None, None) if arguments.ssh else make_key()
    fields = {
        "name": name,
        "sha256": digest,
        "ssh_ed25519": arguments.ssh,
        "scopes": arguments.scope,
        "models": arguments.model,
        "expires": arguments.expires,
        "requests_per_minute": arguments.rpm,
        "concurrent_requests": arguments.concurrent,
        "tokens_per_day": arguments.tokens_per_day,
    }

    def edit(text: str, names: Sequence[str]) -> str:
        if name in names:
            raise Problem(f"{file} has a key {name} already: choose another name, or `scripts/keys rotate {name}`")
        return appended(text, {field: value for field, value in fields.items() if value is not None})

    is_new = not file.exists()
    change(file, name, edit)
    how = "the key is shown only now" if key else "with OLLAMA_AUTH=1 the ollama command line signs as that"
    notes = [f"{name} is in {file} now; {how}"]
    if is_new:
        notes.append(f"the gate reads it with OLLAMA_KEYS_FILE={file.absolute()}")
    return Answer({"file": str(file), "name": name, "key": key}, key or "", notes)


def revoke(arguments: argparse.Namespace) -> Answer:
    file, name = existing(arguments.file), arguments.name
    change(file, name, lambda text, names: without(text, known(name, names)))
    return Answer({"file": str(file), "name": name}, "", [f"{name} is no longer in {file}"])


def rotate(arguments: argparse.Namespace) -> Answer:
    file, name = existing(arguments.file), arguments.name
    key, digest = make_key()
    until = in_future(arguments.grace) if arguments.grace else None

    def update(entry: "Table") -> None:
        if "sha256" not in entry:
            raise Problem(f"{name} signs with an ssh key: revoke {name}, then add it with the new one as --ssh")
        previous = str(entry["sha256"])
        entry["sha256"] = digest
        entry.pop("previous_sha256", None)
        entry.pop("previous_until", None)
        if until:
            entry["previous_sha256"], entry["previous_until"] = previous, until

    change(file, name, lambda text, names: updated(text, known(name, names), update))
    end = iso(until.timestamp()) if until else None
    old = f"the old one works until {end}" if end else "the old one works no more"
    facts = {"file": str(file), "name": name, "key": key, "old_key_until": end}
    return Answer(facts, key, [f"{name} has a new key, which is shown only now; {old}"])


def show(arguments: argparse.Namespace) -> Answer:
    keys, warnings = keys_file.load(existing(arguments.file))
    facts = [describe(list(group)) for _, group in groupby(keys, lambda key: key.principal.name)]
    rows = [("NAME", "KIND", "SCOPES", "MODELS", "LIMITS", "EXPIRES"), *(row(fact) for fact in facts)]
    return Answer(facts, aligned(rows) if facts else "", warnings)


def describe(keys: Sequence[Key]) -> dict[str, Any]:
    """What may be known of one name: of the key in force, and of the one it replaced while that is valid."""
    key, who, now = keys[0], keys[0].principal, time.time()
    until = next((key.until for key in keys if key.until is not None and key.until > now), None)
    return {
        "name": who.name,
        "kind": "ssh" if key.ssh_ed25519 else "key",
        "scopes": [scope for scope in Scope if scope in who.scopes],
        "models": who.models,
        **{field: getattr(who, field) for field in LIMITS},
        "expires": iso(who.expires),
        "expired": who.expires is not None and who.expires <= now,
        "old_key_until": iso(until),
    }


def row(fact: Mapping[str, Any]) -> tuple[str, ...]:
    limits = [f"{fact[field]}{unit}" for field, unit in LIMITS.items() if fact[field]]
    return (
        fact["name"],
        fact["kind"] + (f" (old one until {fact['old_key_until']})" if fact["old_key_until"] else ""),
        " ".join(fact["scopes"]),
        " ".join(fact["models"] or ["all"]),
        ", ".join(limits) or "none",
        (fact["expires"] or "never") + (" (expired)" if fact["expired"] else ""),
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def check(arguments: argparse.Namespace) -> Answer:
    file = arguments.file
    keys, warnings = keys_file.load(existing(file))
    names = owners(keys)
    if arguments.name is None:
        count = f"{len(names)} key{'' if len(names) == 1 else 's'}"
        facts = {"file": str(file), "keys": len(names), "warnings": warnings}
        return Answer(facts, f"{file}: {count}, no fault", warnings)
    name = known(arguments.name, names)
    return what_if(arguments, next(key.principal for key in keys if key.principal.name == name))


def what_if(arguments: argparse.Namespace, who: Principal) -> Answer:
    """What a request would get, and why."""
    found = route(arguments.method.upper().encode(), arguments.path.encode())
    denial = policy.check_route(who, found, time.time())
    if denial is None and arguments.model is not None:
        model = reference(arguments.model)
        if model is None:
            raise Problem("MODEL is not a valid name of a model: write it as `ollama list` does")
        denial = policy.check_models(who, [model])
    request = " ".join(filter(None, [arguments.method.upper(), arguments.path, arguments.model]))
    facts = {"name": who.name, "request": request, "class": found.route_class, "allowed": denial is None}
    if denial:
        facts |= {"status": denial.status, "reason": denial.reason, "message": denial.message}
        text = f"{who.name}: {request} gets {denial.status} ({denial.reason}): {denial.message}"
        return Answer(facts, text, status=1)
    notes = []
    if who.models is not None and arguments.model is None and found.takes_model:
        notes.append(f"its model has to be one of {' '.join(who.models)}; name it as MODEL to see")
    return Answer(facts, f"{who.name}: {request} is let in ({found.route_class})", notes)


# The command line.


def parse(command_line: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/keys", description=__doc__, **STYLE)
    add_options(parser)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], Answer], name: str, text: str, more: str = "") -> Any:
        what = f"{text[0].upper()}{text[1:]}. {more}".strip()
        added = commands.add_parser(name, help=text, description=what, **STYLE)
        add_options(added, default=argparse.SUPPRESS)
        added.set_defaults(run=run)
        return added

    command(new, "new", "print a new key, and change no file")
    add_options_of_add(command(add, "add", "make a key, print it this once and keep its digest"))
    command(show, "list", "show who has a key and what they may do, never a key")
    command(revoke, "revoke", "remove a key: its next request is denied").add_argument("name", metavar="NAME")
    rotating = command(rotate, "rotate", "make a new key for a name and print it this once",
                       "The old one works a little longer, and no longer than until it is rotated again.")  # fmt: skip
    rotating.add_argument("name", metavar="NAME")
    rotating.add_argument("--grace", metavar="SPAN", type=argument(duration), default=timedelta(hours=24),
                          help="how long the old key works: 90m, 24h, 7d; 0 ends it now; default: 24h")  # fmt: skip
    checking = command(check, "check", "look for faults in the file, or say what a request would get and why",
                       "Without arguments, checks the file. Changes nothing.")  # fmt: skip
    for name in ("name", "method", "path", "model"):
        checking.add_argument(name, metavar=name.upper(), nargs="?")
    arguments = parser.parse_args(command_line)
    if arguments.run is check and arguments.name is not None and not (arguments.path or "").startswith("/"):
        checking.error("give NAME, METHOD, a PATH that begins with / and perhaps a MODEL, or none of them")
    arguments.file = (arguments.file or Path(os.environ.get("OLLAMA_KEYS_FILE") or "keys.toml")).expanduser()
    return arguments


def add_options(parser: argparse.ArgumentParser, **default: Any) -> None:
    parser.add_argument("--file", metavar="PATH", type=Path, **default,
                        help="the keys file; default: $OLLAMA_KEYS_FILE, else keys.toml")  # fmt: skip
    parser.add_argument("--json", action="store_true", **default, help="answer with JSON on standard output")


def add_options_of_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", type=argument(keys_file.key_name), help="whom or what the key is for")
    parser.add_argument("--scope", metavar="S", nargs="+", action="extend", choices=list(Scope),
                        help=f"what it may do, of {', '.join(Scope)}; default: infer embed list")  # fmt: skip
    parser.add_argument("--model", metavar="M", nargs="+", action="extend", type=argument(keys_file.model_pattern),
                        help="which models it may use, with * for any characters; default: all")  # fmt: skip
    parser.add_argument("--expires", metavar="WHEN", type=argument(expiry),
                        help="30d, 2027-01-01 (the end of that day in UTC), 2027-01-01T00:00:00Z")  # fmt: skip
    for option, what in OPTIONS_OF_LIMITS.items():
        parser.add_argument(option, metavar="N", type=argument(limit), help=f"{what}; default: no limit")
    parser.add_argument("--ssh", metavar="FILE|LINE", type=argument(public_key),
                        help="let the stock ollama command line in by its public key; no key is made")  # fmt: skip


def main() -> int:
    arguments = parse(sys.argv[1:])
    try:
        answer: Answer = arguments.run(arguments)
    except keys_file.KeysFileError as error:
        faults = error.faults
    except Problem as problem:
        faults = (str(problem),)
    except ModuleNotFoundError as error:
        faults = (f"{error.name} is missing: pip install {error.name}",)
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "nothing was changed")
        faults = (f"{arguments.file} can't be written ({error.strerror}): {remedy}",)
    except KeyboardInterrupt:
        return 130
    else:
        tell(arguments.json, answer.facts, answer.text, answer.notes)
        return answer.status
    tell(arguments.json, {"faults": faults}, "", faults)
    return 1


def tell(as_json: bool, facts: object, text: str, notes: Sequence[str]) -> None:
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    if text:
        print(text)
    for note in notes:
        print(f"ollama-auth: {note}", file=sys.stderr)


if __name__ == "__main__":
    if sys.platform != "win32":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Whoever reads a list may stop in the middle.
    sys.exit(main())
