"""The keys file: read and checked as a whole, and every fault in it reported at once.

The file is TOML, with a table [[keys]] for each key. Faults never quote a value, which may be a key that was put in the
wrong place; they quote names of keys and fields, if these look like names. `load` and `read` access the file;
everything else is pure.
"""

import os
import re
import stat
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import OllamaAuthError, command, why_unreadable
from .cut_off import END, check_end, has_end, lost_fields
from .key_fields import DIGEST_WANTED, FIELDS, OF_PRINCIPAL, FieldError
from .keys import DEFAULT_SCOPES, Key, KeyRing, Principal
from .watched_file import REPLACED, mounted

MAX_FILE = 16 * 1024 * 1024
"""Bytes; some 50,000 keys."""

_FIELD = re.compile(r"[A-Za-z_]{1,24}")
_PLAIN_KEY = {"api_key", "apikey", "key", "password", "secret", "token", "value"}


class KeysFileError(OllamaAuthError, ValueError):
    """A keys file that can't be used or changed: `faults` are all that is wrong, a line each, with the remedy."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


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
        remedy = "name a keys file that this process may read"
        raise KeysFileError([f"{shown}: can't be read ({why_unreadable(error)}); {remedy}"]) from None
    if stat.S_ISREG(mode) and found.st_nlink == 0:
        raise KeysFileError([f"{shown}: {REPLACED}"])
    if not stat.S_ISREG(mode):
        raise KeysFileError([f"{shown}: is not a file; name the file that holds the keys"])
    if len(data) > MAX_FILE:
        raise KeysFileError([f"{shown}: is larger than {MAX_FILE // 1024**2} MiB; name the file that holds the keys"])
    return data, mode


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
        return f"{field} seems to hold a key; {DIGEST_WANTED}"
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
            values[field] = FIELDS[field].parse(value)
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
    given = {field.name: values[field.name] for field in OF_PRINCIPAL if field.name in values}
    principal = Principal(**{"scopes": DEFAULT_SCOPES} | given)
    yield Key(values.get("sha256"), principal, values.get("ssh_ed25519"))
    if "previous_sha256" in values:
        yield Key(values["previous_sha256"], principal, until=values["previous_until"])
