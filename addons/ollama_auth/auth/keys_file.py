"""The keys file: read and checked as a whole, and every fault in it reported at once.

The file is TOML, with a table [[keys]] for each key. TOML has no end: of a file that was cut off (by a full disk, or by
an editor that stalls) the last key may have lost its restrictions. So a file may announce its last line, and without it
is a fault; and a change that takes a restriction from the last key of a file without that line is a fault, too.

Faults never quote a value, which may be a key that was put in the wrong place; they quote names of keys and fields, if
these look like names. `load`, `read` and `stamp` access the file; everything else is pure.
"""

import os
import re
import stat
import tomllib
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..errors import OllamaAuthError, command
from ..ollama_api.model_names import check_pattern
from . import weak_keys
from .keys import DEFAULT_SCOPES, Key, KeyRing, Principal, Scope, parse_ssh_key

MAX_FILE = 16 * 1024 * 1024
"""Bytes; some 50,000 keys."""
MAX_NAME, MAX_NOTE = 64, 256
"""Characters of the name of a key, and of its note."""
MAX_LIMIT = 10**15 - 1
"""The greatest integer that a structured header field such as RateLimit can hold (RFC 9651 section 3.3.1)."""
RESERVED = {"default": "the key that the environment holds", "-": "a request without a key, in the log"}
"""Names that no key in a keys file can have, and what they stand for."""

END = "# end of the keys"
"""The last line of a file that is whole."""
ANNOUNCEMENT = f'# It is whole if its last line is "{END}".'
"""A line at the beginning of a file that has to end with END."""

_PUNCTUATION = str.maketrans("", "", "._-")
_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
_FIELD = re.compile(r"[A-Za-z_]{1,24}")
_DAY = 24 * 60 * 60
_YEAR_10000 = 253_402_300_800  # In seconds since 1970, as all times here.
_PLAIN_KEY = {"api_key", "apikey", "key", "password", "secret", "token", "value"}
_DIGEST_WANTED = "store the digest of a key, as `printf %s THE_KEY | sha256sum` prints it, and never the key itself"


MOUNTS, DELETED = Path("/proc/self/mountinfo"), "//deleted"
REPLACED = (
    "was replaced outside, and is mounted by itself, so the new one can't be seen, nor which keys were revoked; mount "
    "its folder, and start again"
)


class KeysFileError(OllamaAuthError, ValueError):
    """A keys file that can't be used or changed: `faults` are all that is wrong, a line each, with the remedy."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class FieldError(OllamaAuthError, ValueError):
    """A value that can't be used; the message continues a sentence that begins with the name of the field."""


# The file.


def load(path: str | Path, before: KeyRing | None = None) -> tuple[tuple[Key, ...], tuple[str, ...]]:
    """Read a file; return (its keys, warnings). Raises KeysFileError.

    `before` are the keys that are in force now, if they came from this file.
    """
    data, mode = read(path)
    keys = parse(data, str(path))
    if before and keys and not has_end(data) and (lost := lost_fields(before, keys[-1])):
        what = f"the last key has lost {', '.join(lost)}, as in a file that was cut off"
        remedy = f"write it again, or, if you mean it, make `{END}` the last line"
        raise KeysFileError([f"{path}: {keys[-1].principal.name}: {what}; {remedy}"])
    warnings = []
    if mounted(path) is not None:
        warnings.append(f"{path}: it is mounted by itself, so a file that replaces it is never seen; mount its folder")
    if not keys:
        warnings.append(f"{path}: no key is in it; add one with `{command('keys')} add NAME`")
    # 0440 is what Kubernetes and systemd set: one group may read the file, and no user may change it.
    if os.name == "posix" and mode & 0o077 and mode & 0o777 != 0o440:
        may = "change" if mode & 0o022 else "read"
        warnings.append(f"{path}: others may {may} it; run `chmod 600` on it")
    return keys, tuple(warnings)


def read(path: str | Path) -> tuple[bytes, int]:
    """Read a file; return (its bytes, its mode). Raises KeysFileError."""
    # A key may have been set where the path belongs; a key has none of these characters.
    shown = str(path) if set(str(path)) & set("./\\~") else "the keys file"
    file = Path(os.path.expanduser(path))
    try:
        found = file.stat()
        mode, data = found.st_mode, b""
        if stat.S_ISREG(mode):  # Opening a pipe would block.
            with file.open("rb") as opened:
                data = opened.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or "it is not a path"
        raise KeysFileError([f"{shown}: can't be read ({why}); name a keys file that this process may read"]) from None
    if stat.S_ISREG(mode) and found.st_nlink == 0:
        raise KeysFileError([f"{shown}: {REPLACED}"])
    if not stat.S_ISREG(mode):
        raise KeysFileError([f"{shown}: is not a file; name the file that holds the keys"])
    if len(data) > MAX_FILE:
        raise KeysFileError([f"{shown}: is larger than {MAX_FILE // 1024**2} MiB; name the file that holds the keys"])
    return data, mode


def stamp(path: str | Path) -> tuple[int, ...] | None:
    """A value that changes when the file at a path is written or replaced; None while there is no file."""
    try:
        found = os.stat(os.path.expanduser(path))
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino, found.st_size, found.st_nlink


def mounted(path: str | Path) -> str | None:
    """What is mounted at this very path, as proc_pid_mountinfo(5) names it; None if it is no mount of its own.

    A mount keeps the file that it was made of, whatever has that file's name since. When that file is renamed, it is
    named otherwise here, and when it is removed, as DELETED.
    """
    with suppress(OSError, ValueError):
        place = os.path.realpath(os.path.expanduser(path))
        for mount in reversed(MOUNTS.read_text("utf-8", "surrogateescape").splitlines()):  # The last one covers others.
            _, _, _, root, point, *_ = mount.split(" ")
            if re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point) == place:
                return root
    return None


def was_replaced(path: str | Path, before: str | None) -> bool:
    """Whether a file that is mounted by itself is one that its name has no more. `before` is what was mounted first."""
    found, now = stamp(path), mounted(path)
    gone = found is not None and found[-1] == 0
    return gone or (now is not None and (now != before or now.endswith(DELETED)))


# Whether it is whole.


def has_end(data: bytes) -> bool:
    """Whether the last line that is not blank is END."""
    return data.rstrip().endswith(b"\n" + END.encode())


def check_end(data: bytes) -> None:
    """Refuse a file that announces its last line and does not have it. Raises FieldError."""
    if ANNOUNCEMENT.encode() in data and not has_end(data):
        raise FieldError(
            f"is cut off, or has keys below its end: its last line is not `{END}`, which its first lines announce; "
            "write it again, or move that line to the end"
        )


def lost_fields(before: KeyRing, key: Key) -> list[str]:
    """The fields that may have been cut off a key: those that restricted it before, and do so no more.

    None if any that is left was changed: a person did that.
    """
    after = key.principal
    old = before.principals.get(after.name)
    if old is None:
        return []
    lost: list[str] = []
    for name, one, other in zip(RESTRICTIONS, _restrictions(old), _restrictions(after), strict=True):
        if one != other and other is not None and not _is_part(one, other):
            return []
        if one is not None and (other is None or (name == "expires" and one != other)):
            lost.append(name)
    if after.scopes not in (old.scopes, DEFAULT_SCOPES):
        return []
    if not after.scopes <= old.scopes and Scope.ALL not in old.scopes:
        lost.append("scopes")
    until = before.until(key)
    return [*lost, "previous_until"] if until != key.until and _is_part(until, key.until) else lost


def _is_part(whole: object, part: object) -> bool:
    """Whether a value may be what a cut left: of a number its first digits, of a time its date, which ends later."""
    if isinstance(whole, float) and isinstance(part, float):
        return whole < part <= whole + _DAY
    return isinstance(whole, int) and str(whole).startswith(str(part))


# What is in it.


def parse(data: bytes, where: str) -> tuple[Key, ...]:
    """Parse the bytes of a file, which faults call `where`. Raises KeysFileError.

    A blank file is a fault, since it is most likely being written just now; a file with only a comment has no keys.
    """
    try:
        check_end(data)
        document = _document(data)
        tables = document.pop("keys", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise FieldError("keys are not given as tables; begin each key with a line [[keys]], in double brackets")
    except FieldError as fault:
        raise KeysFileError([f"{where}: {fault}"]) from None
    faults = [
        f"{where}: {field} stands above the first key; begin each key with a line [[keys]]"
        if field in FIELDS
        else f"{where}: {_unknown(field, value, ['keys'])}"
        for field, value in document.items()
    ]
    keys: list[Key] = []
    seen: dict[object, int] = {}
    for number, table in enumerate(tables, 1):
        values, wrong = read_fields(table)
        wrong += [*_combination(table), *_taken(values, number, seen)]
        own_name = "name" in values and seen["name", values["name"]] == number
        label = values["name"] if own_name else f"key number {number}"
        faults += [f"{where}: {label}: {fault}" for fault in wrong]
        if not faults:
            keys += _keys(values)
    if faults:
        raise KeysFileError(faults)
    return tuple(keys)


def _document(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FieldError(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    if not text.strip():
        raise FieldError(f"is empty; add a key with `{command('keys')} add NAME`, or a comment to deny everyone")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise FieldError("its brackets nest too deep; begin each key with a line [[keys]]") from None
    except ValueError as error:
        what, _, place = str(error).rpartition(" (at ")
        # Anything quoted after the first words comes from the file.
        why = re.split("[^A-Za-z ]", what, maxsplit=1)[0].strip()
        raise FieldError(
            f"{place.rstrip(')') if what else 'somewhere'}: this is not TOML ({why or 'Invalid value'}); "
            "put text in quotes, and begin each key with a line [[keys]]"
        ) from None


def _unknown(field: str, value: object, fields: Collection[str]) -> str:
    if field.lower() in _PLAIN_KEY and isinstance(value, str):
        return f"{field} seems to hold a key; {_DIGEST_WANTED}"
    close = get_close_matches(field.lower()[:64], fields, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(fields)}"
    return f"there is no field {field if _FIELD.fullmatch(field) else 'of such a name'}; {hint}"


def read_fields(table: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """Read the fields of a key; return (the values by field, the faults)."""
    values: dict[str, Any] = {}
    faults: list[str] = []
    for field, value in table.items():
        if field not in FIELDS:
            faults.append(_unknown(field, value, FIELDS))
            continue
        try:
            values[field] = FIELDS[field](value)
        except FieldError as fault:
            faults.append(f"{field} {fault}")
    return values, faults


def _combination(fields: Iterable[str]) -> Iterator[str]:
    """Yield the faults in the combination of fields of a key."""
    fields = set(fields)
    if "name" not in fields:
        yield 'has no name; say whom the key is for, as in name = "alice"'
    if not fields & {"sha256", "ssh_ed25519"}:
        yield f"has neither sha256 nor ssh_ed25519; `{command('keys')} add NAME` makes a key with its digest"
    if fields >= {"sha256", "ssh_ed25519"}:
        yield "has both sha256 and ssh_ed25519; make it two keys with two names"
    if len(fields & {"previous_sha256", "previous_until"}) == 1:
        yield "has one of previous_sha256 and previous_until; write both or neither"
    if fields >= {"ssh_ed25519", "previous_sha256"}:
        yield "has previous_sha256, which only goes with sha256; remove it"


def _taken(values: Mapping[str, Any], number: int, seen: dict[object, int]) -> Iterator[str]:
    """Yield the values that a key above has too. `seen` maps (field, value) to the first key, and is updated."""
    for field in ("name", "sha256", "previous_sha256", "ssh_ed25519"):
        if field in values:
            what = field.removeprefix("previous_"), values[field]
            if what in seen:
                yield f"{field} is that of key number {seen[what]} too; give each key its own"
            seen.setdefault(what, number)


def _keys(values: Mapping[str, Any]) -> Iterator[Key]:
    """Yield the key of a valid table, and the one that it replaced."""
    principal = Principal(**{"scopes": DEFAULT_SCOPES} | {name: values[name] for name in _PRINCIPAL if name in values})
    yield Key(values.get("sha256"), principal, values.get("ssh_ed25519"))
    if "previous_sha256" in values:
        yield Key(values["previous_sha256"], principal, until=values["previous_until"])


# The fields. Each reader takes the value that TOML holds and returns the one that a Key or Principal holds, or raises
# FieldError.


def key_name(value: object) -> str:
    """The name of a key, by which logs and limits identify its principal: letters and digits of any alphabet.

    It is normalized (NFC), since the same letter can be written in two ways.
    """
    if not isinstance(value, str):
        raise FieldError("is not text; write it in quotes")
    name = normalized(value)
    kinds = [unicodedata.category(one) for one in name.translate(_PUNCTUATION)]
    if not 1 <= len(name) <= MAX_NAME or not all(kind[0] in "LM" or kind == "Nd" for kind in kinds):
        raise FieldError(
            f"is not 1 to {MAX_NAME} letters, digits, dots, underscores and hyphens; spell it so, "
            "and put the rest into its note"
        )
    if name in RESERVED:
        raise FieldError(f"{name} stands for {RESERVED[name]}; choose another")
    if name.startswith("sk-"):
        raise FieldError(f"seems to be a key; say whom the key is for, and {_DIGEST_WANTED}")
    return name


def normalized(name: str) -> str:
    """The one form of a name that may be written in several."""
    return unicodedata.normalize("NFC", name)


def _digest(value: object) -> bytes:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise FieldError(f"is not 64 hex digits in quotes; {_DIGEST_WANTED}")
    if weak_keys.hash_of_common(value):
        raise FieldError(
            f"is the digest of a well-known word, or of nothing; make a key with `{command('keys')} add NAME`"
        )
    return bytes.fromhex(value)


def ssh_key(value: object) -> bytes:
    """The 32 bytes of a public key in OpenSSH's format, one line `ssh-ed25519 AAAA... comment`."""
    line = value.strip() if isinstance(value, str) else ""
    if "PRIVATE KEY" in line:
        raise FieldError("is a private key, which only its owner may have; take the file beside it that ends in .pub")
    kind, _, rest = line.partition(" ")
    if kind != "ssh-ed25519" or not rest.strip() or len(line.splitlines()) > 1:
        raise FieldError("is not one line `ssh-ed25519 AAAA... comment`; copy it from ~/.ollama/id_ed25519.pub")
    key = parse_ssh_key(rest.split()[0].encode("utf-8", "replace"))
    if key is None:
        raise FieldError("is not whole; copy the line of the public key again")
    return key


def scope(value: object) -> Scope:
    """A scope."""
    try:
        return Scope(value)  # type: ignore[arg-type]
    except ValueError:
        close = get_close_matches(value.lower()[:64], Scope, n=1) if isinstance(value, str) else []
        hint = f"did you mean {close[0]}?" if close else f"the scopes are {', '.join(Scope)}"
        raise FieldError(f"is not a valid scope; {hint}") from None


def model_pattern(value: object) -> str:
    """A pattern of model names."""
    if not isinstance(value, str):
        raise FieldError("is not text; write it in quotes")
    if fault := check_pattern(value):
        raise FieldError(fault)
    return value


def _each[T](value: object, read: Callable[[object], T]) -> list[T]:
    if not isinstance(value, list):
        raise FieldError('is not a list; write it in brackets, as in ["one", "another"]')
    if not value:
        raise FieldError("is empty; leave it out for the default, or remove the key")
    found: list[T] = []
    faults: list[str] = []
    for number, item in enumerate(value, 1):
        try:
            found.append(read(item))
        except FieldError as fault:
            faults.append(f"number {number} {fault}")
    if faults:
        raise FieldError("; ".join(faults))
    return found


def instant(value: object) -> float:
    """A time in seconds since 1970; of a date without a time, the end of that day in UTC."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise FieldError("has no time zone; write Z behind it for UTC, as in 2027-01-01T00:00:00Z")
        seconds = value.timestamp()
    elif isinstance(value, date):
        seconds = datetime.combine(value, time(), UTC).timestamp() + timedelta(days=1).total_seconds()
    else:
        raise FieldError("is not a date; write it without quotes, as in 2027-01-01T00:00:00Z or 2027-01-01")
    if not 0 <= seconds < _YEAR_10000:
        raise FieldError("is before 1970 or after 9999; correct it, or leave it out for no end")
    return seconds


def limit(value: object) -> int:
    """The amount of a limit."""
    if type(value) is not int:  # bool is an int to Python, and not to TOML.
        raise FieldError("is not a whole number; write it without quotes, as in 60")
    if not 1 <= value <= MAX_LIMIT:
        raise FieldError(f"is not from 1 to {MAX_LIMIT}; leave it out for no limit, or remove the key")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise FieldError("is neither true nor false; write one of them without quotes")
    return value


def note(value: object) -> str:
    """A note on a key."""
    if not isinstance(value, str) or len(value) > MAX_NOTE or not value.isprintable():
        raise FieldError(f"is not one line of up to {MAX_NOTE} characters; shorten it")
    return value


FIELDS: dict[str, Callable[[object], object]] = {
    "name": key_name,
    "sha256": _digest,
    "ssh_ed25519": ssh_key,
    "scopes": lambda value: frozenset(_each(value, scope)),
    "models": lambda value: tuple(_each(value, model_pattern)),
    "expires": instant,
    "requests_per_minute": limit,
    "concurrent_requests": limit,
    "tokens_per_day": limit,
    "tokens_per_month": limit,
    "disabled": _flag,
    "note": note,
    "previous_sha256": _digest,
    "previous_until": instant,
}
"""The fields of a key and their readers."""
HARMLESS = {"name", "scopes", "note"}
"""The fields without which a key may do no more."""
_PRINCIPAL = FIELDS.keys() & Principal.__slots__
RESTRICTIONS = sorted(_PRINCIPAL - HARMLESS)

_get_restrictions = attrgetter(*RESTRICTIONS)


def _restrictions(principal: Principal) -> list[object]:
    """The values of RESTRICTIONS, None where there is no restriction."""
    return [None if value is False else value for value in _get_restrictions(principal)]
