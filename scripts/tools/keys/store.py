"""The keys file on disk: read, changed by one writer at a time, replaced atomically."""

import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

from ollama_auth.auth import keys_file
from ollama_auth.auth.keys import Key

from ..terminal import ToolError

LOCK_TIMEOUT = 30
"""Seconds to wait for another writer."""


def read(file: Path) -> tuple[str, tuple[Key, ...]]:
    """(text, keys) of a keys file; both are empty if it does not exist. Raises KeysFileError."""
    if not file.exists():
        return "", ()
    data, _ = keys_file.read(file)
    if not data.strip():
        return "", ()
    keys = keys_file.parse(data, str(file))
    return data.decode("utf-8-sig"), keys


def existing(file: Path) -> Path:
    """Return the path if the file exists. Raises ToolError."""
    if not file.exists():
        raise ToolError(f"there is no {file}: `scripts/keys add NAME` makes it, --file PATH names another")
    return file


def change(file: Path, name: str, edit: Callable[[str, Sequence[str]], str]) -> None:
    """Replace the file with `edit(text, names)`, unless that changes the keys of others than `name`.

    Raises ToolError, KeysFileError and OSError; then the file is as it was.
    """
    target = Path(os.path.realpath(file))
    with locked(target):
        text, before = read(file)
        after = edit(text, owners(before))
        if "\r\n" in text:
            after = re.sub("\r?\n", "\r\n", after)
        try:
            changed = keys_file.parse(after.encode(), str(file))
        except keys_file.KeysFileError as error:
            raise ToolError(f"{file} was left alone, as it would become faulty: {error.faults[0]}") from None
        if others(before, name) != others(changed, name):
            raise ToolError(f"{file} was left alone, as others than {name} would change: edit it by hand")
        replace(target, after.encode())


def others(keys: Sequence[Key], name: str) -> list[Key]:
    """The keys that are not of that name."""
    return [key for key in keys if key.principal.name != name]


def owners(keys: Sequence[Key]) -> list[str]:
    """The names in the order of the file, each once."""
    return list(dict.fromkeys(key.principal.name for key in keys))


def check_known(name: str, names: Sequence[str]) -> str:
    """Return the name if it is one of the names. Raises ToolError, with the closest one."""
    if name in names:
        return name
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else "`scripts/keys list` shows all"
    raise ToolError(f"there is no key {name}: {hint}")


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
    """Hold the lock of the file. It is on another file beside it, since this one is replaced. Raises ToolError."""
    lock = file.with_name(f".{file.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_TIMEOUT
    try:
        while True:
            try:
                try_lock(descriptor)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    raise ToolError(
                        f"another program has held {lock} for {LOCK_TIMEOUT} s: end it, then try again"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def replace(file: Path, data: bytes) -> None:
    """Replace the file atomically. It keeps its mode and owner; a new file has mode 0600. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
            if file.exists():
                copy_rights(file.stat(), Path(temporary))
            opened.flush()
            os.fsync(descriptor)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    with suppress(OSError):  # Windows can't open a directory.
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def copy_rights(wanted: os.stat_result, file: Path) -> None:
    """Give the file that owner and mode."""
    found = file.stat()
    if sys.platform != "win32" and (found.st_uid, found.st_gid) != (wanted.st_uid, wanted.st_gid):
        os.chown(file, wanted.st_uid, wanted.st_gid)
    file.chmod(stat.S_IMODE(wanted.st_mode))
