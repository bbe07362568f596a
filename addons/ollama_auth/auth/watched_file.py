"""What tells that a file was changed, or was replaced where that can't be seen."""

import os
import re
from contextlib import suppress
from pathlib import Path

from .. import IMPORTED  # noqa: F401, not a script: see __init__.py

MOUNTS, DELETED = Path("/proc/self/mountinfo"), "//deleted"
REPLACED = (
    "was replaced outside, and is mounted by itself, so the new one can't be seen, nor which keys were revoked; mount "
    "its folder, and start again"
)


def stamp(path: str | Path) -> tuple[int, ...] | None:
    """Return numbers that differ once a file has changed: times, device, inode, size, links. None if there is none."""
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
