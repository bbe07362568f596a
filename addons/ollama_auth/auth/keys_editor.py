"""Change a keys file: one writer at a time, checked as a whole, replaced atomically. For scripts/keys and the console.

Each function takes the path of the file, the name of a key and plain values, and raises KeysFileError, which says
where, what is wrong and what to do next; then the file is as it was. They block: on the lock, and to write.
Fields are those of key_fields.FIELDS with the values that TOML holds, or in their short form, or None where there is
none.
"""

import errno
import hashlib
import os
import stat
import sys
import time
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from .. import clock
from . import cut_off, keys_file, keys_text
from .key_fields import CREDENTIALS, FIELDS, FieldError, in_future, normalized, time_of
from .keys import Key, KeyRing, new_key
from .keys_file import KeysFileError

LOCK_TIMEOUT = 30
"""Seconds to wait for another writer."""


class Rotated(NamedTuple):
    """What `rotate` made: the new key, and until when the old one works."""

    key: str
    old_key_until: datetime | None


def make(file: Path) -> None:
    """Create a keys file with no keys in it, unless the file exists. Raises OSError, FieldError.

    The file appears with its text: an empty keys file is an error.
    """
    if not os.path.lexists(file):
        with _locked(file):
            if not os.path.lexists(file):
                _replace(file, keys_text.NO_KEYS.encode())


def add(path: str | Path, name: str, fields: Mapping[str, object]) -> str | None:
    """Add a key and return it; only its digest is kept. With the field `ssh_ed25519` none is made."""
    key = None if fields.get("ssh_ed25519") else new_key()
    entry = {"name": name, "sha256": _digest(key) if key else None, **checked(fields)}

    def appended(text: str, mine: Sequence[Key]) -> str:
        if mine:
            raise FieldError(f"has a key {name} already; choose another name, or rotate it")
        return keys_text.appended(text, {field: value for field, value in entry.items() if value is not None})

    change(path, name, appended)
    return key


def edit(path: str | Path, name: str, fields: Mapping[str, object]) -> None:
    """Give fields of a key other values; None removes one."""
    # Logs and limits know a key by its name.
    if fixed := sorted(fields.keys() & {"name", *CREDENTIALS}):
        raise KeysFileError([f"{fixed[0]} can't be edited; rotate the key, or revoke it and add another"])
    changes = checked(fields)
    change(path, name, lambda text, _: keys_text.updated(text, name, changes), known=True)


def rotate(path: str | Path, name: str, grace: timedelta) -> Rotated:
    """Make a new key for a name. The old one works until the end of the grace; one that is in its grace now has to end
    first, except if the new grace is zero, which ends all old ones at once."""
    key, until = new_key(), in_future(grace) if grace else None

    def updated(text: str, mine: Sequence[Key]) -> str:
        if mine[0].digest is None:
            raise FieldError(f"has an ssh key for {name}; revoke it, then add the new one")
        last = max((one.until for one in mine if one.until is not None), default=0)
        if until and last > clock.wall():
            raise FieldError(
                f"says that the key which {name} had before this one works until {time_of(last)}; rotate it again "
                "after that, or with a grace of 0, which ends both now"
            )
        changes = {
            "sha256": _digest(key),
            "previous_sha256": mine[0].digest.hex() if until else None,
            "previous_until": until,
        }
        return keys_text.updated(text, name, changes)

    change(path, name, updated, known=True)
    return Rotated(key, until)


def revoke(path: str | Path, name: str) -> None:
    """Remove all keys of a name."""
    change(path, name, lambda text, _: keys_text.without(text, name), known=True)


# Values.


def checked(fields: Mapping[str, object]) -> dict[str, object]:
    """The values as the file will hold them."""
    values = dict(fields)
    for name, value in fields.items():
        if isinstance(value, str) and (field := FIELDS.get(name)) and field.short:
            try:
                values[name] = field.short(value)
            except FieldError as fault:
                raise KeysFileError([f"{name} {fault}"]) from None
    _, faults = keys_file.read_fields({field: value for field, value in values.items() if value is not None})
    if faults:
        raise KeysFileError(faults)
    return values


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


# The file.


def change(path: str | Path, name: str, edited: Callable[[str, Sequence[Key]], str], *, known: bool = False) -> None:
    """Replace the file with `edited(text, keys of that name)`, unless that changes the keys of others.

    `known` is whether the name has to be there. A FieldError of `edited` continues a sentence about the file.
    """
    file, name = Path(os.path.expanduser(path)), normalized(name)
    try:
        with _locked(Path(os.path.realpath(file))) as target:
            _change(file, target, name, edited, known)
    except FieldError as fault:
        raise KeysFileError([f"{file} {fault}"]) from None
    except ModuleNotFoundError as error:
        raise KeysFileError([f"{file} can't be changed: {error.name} is missing; pip install {error.name}"]) from None
    except OSError as error:
        raise KeysFileError([f"{file} can't be changed: {_fault(error, file)}"]) from None


def _change(file: Path, target: Path, name: str, edited: Callable[[str, Sequence[Key]], str], known: bool) -> None:
    data = keys_file.read(file)[0] if file.exists() else b""
    before = keys_file.parse(data, str(file)) if data.strip() else ()
    ring = KeyRing(before)
    if known:
        check_known(file, name, ring)
    mine = ring.keys_of(name)
    others = [key for key in before if key.principal.name != name]
    text = edited(data.decode("utf-8-sig"), mine)
    try:
        after = keys_file.parse(text.encode(), str(file))
    except KeysFileError as error:
        raise FieldError(f"was left alone, as it would become faulty: {error.faults[0]}") from None
    if others != [key for key in after if key.principal.name != name]:
        raise FieldError(f"was left alone, as others than {name} would change; edit it by hand")
    if after and not cut_off.has_end(text.encode()) and cut_off.lost_fields(ring, after[-1]):
        text = keys_text.with_end(text)  # The gate would take it for a file that was cut off.
    _replace(target, (BOM_UTF8 if data.startswith(BOM_UTF8) else b"") + text.encode())


def check_known(file: Path, name: str, ring: KeyRing) -> None:
    """Raise KeysFileError, with the closest name, if it is none of the names in the file."""
    if name not in ring.principals:
        close = get_close_matches(name, ring.principals, n=1)
        hint = f"did you mean {close[0]}?" if close else "`scripts/keys list` shows all"
        raise KeysFileError([f"{file} has no key {name}; {hint}"])


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _locked(file: Path) -> Iterator[Path]:
    """Hold the lock of the file, and yield the file. The lock is another file beside it, since this one is replaced."""
    lock = file.with_name(f".{file.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_TIMEOUT
    try:
        with suppress(OSError):  # Else what root changed, its owner could change no more.
            _copy_owner(file if file.exists() else file.parent, descriptor)
        while True:
            try:
                _try_lock(descriptor)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    raise FieldError(
                        f"is in use: another program has held {lock} for {LOCK_TIMEOUT} s; end it, then try again"
                    ) from None
                time.sleep(0.02)
        yield file
    finally:
        os.close(descriptor)


def _replace(file: Path, data: bytes) -> None:
    """Replace the file, which is locked. It keeps its mode and owner; a new file has mode 0600."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)  # Left by a writer that was killed.
    try:
        with open(new, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as opened:
            opened.write(data)
            if file.exists():
                _copy_owner(file, opened.fileno())
                new.chmod(stat.S_IMODE(file.stat().st_mode))
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(new, file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # Windows can't open a directory.
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _copy_owner(wanted: Path, descriptor: int) -> None:
    if sys.platform != "win32":
        found, owner = os.fstat(descriptor), wanted.stat()
        if (found.st_uid, found.st_gid) != (owner.st_uid, owner.st_gid):
            os.chown(descriptor, owner.st_uid, owner.st_gid)


_REMEDIES = {
    errno.ENOENT: "make the directory first",
    errno.EROFS: "change it where it is not mounted read-only",
    errno.EBUSY: "it is mounted alone, so that it can't be replaced; mount its directory instead",
}


def _fault(error: OSError, file: Path) -> str:
    """What could not be done, and the remedy."""
    place = Path(error.filename) if isinstance(error.filename, str) else file
    if error.errno not in (errno.EACCES, errno.EPERM):
        return f"{error.strerror}; {_REMEDIES.get(error.errno or 0, 'it is as it was')}"
    if not place.exists():
        place = place.parent.absolute()
    try:
        remedy = f"run this as its owner, {place.owner()}, or change its mode"
    except (KeyError, NotImplementedError, OSError):
        remedy = "run this as its owner"
    return f"{place} can't be written ({error.strerror}); {remedy}"
