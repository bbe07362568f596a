"""Whether there are keys, whether they can be guessed, and whether other users can read or change them."""

import math
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from ollama_auth import settings
from ollama_auth.auth import keys

from .. import ADDON, serve
from .findings import Finding, bad, ok, some, warn
from .target import Target

WEAK, FAIR = 50.0, 80.0
"""Bits of entropy: a key below WEAK can be guessed; one below FAIR perhaps in some years."""
EXPIRES_SOON = timedelta(days=21)


def credentials(target: Target) -> Iterator[Finding]:
    """Read the keys as the gate would, and estimate whether the single key can be guessed."""
    if not target.launched.has_keys(target.environment):
        yield ok("key", "there is none yet: scripts/serve makes one")
        return
    try:
        ring, _ = settings.read_keys(target.launched.options, target.environment)
    except settings.SettingsError as error:
        yield from (bad("key", *divided(line)) for line in str(error).splitlines())
        return
    if "ollama_api_key" in target.launched.in_arguments:
        yield warn("key", "it is on a command line, which all users can see", "set OLLAMA_API_KEY_FILE instead")
    storage = "ollama_limits_storage"
    if storage in target.launched.in_arguments and "@" in (target.value(storage) or ""):
        remedy = "set OLLAMA_LIMITS_STORAGE or OLLAMA_LIMITS_STORAGE_FILE instead"
        yield warn("limits", "the password of the storage is on a command line, which all users can see", remedy)
    if single := settings.find_secret(target.launched.options, target.environment):
        yield strength(single[0])
    if target.value("ollama_keys_file"):
        yield from named_keys(ring.principals.values(), time.time())


def divided(line: str) -> tuple[str, str]:
    """An error message of the gate -> (fault, remedy)."""
    parts = re.split(r"; |: (?=make one)", line, maxsplit=1)
    return parts[0], parts[1] if parts[1:] else "see README.md"


def bits(secret: str) -> float:
    """An upper bound of the entropy of a key, in bits: Shannon's, from the frequencies of its characters."""
    text = secret.removeprefix("sk-ollama-")
    return sum(-count * math.log2(count / len(text)) for count in Counter(text).values()) if text else 0.0


def strength(secret: str) -> Finding:
    remedy = 'make another: echo "sk-ollama-$(openssl rand -hex 16)"'
    found = bits(secret)
    if found < WEAK:
        return bad("key", "it repeats itself, and can be guessed", remedy)
    if found < FAIR:
        return warn("key", "it is not as strong as it should be", remedy)
    return ok("key", "it is strong")


def named_keys(principals: Iterable[keys.Principal], now: float) -> Iterator[Finding]:
    expires = [(owner.expires, owner.name) for owner in principals if owner.expires is not None]
    gone = sorted(name for when, name in expires if when <= now)
    soon = sorted(name for when, name in expires if now < when <= now + EXPIRES_SOON.total_seconds())
    if gone:
        yield warn("keys file", f"expired: {some(gone)}", "scripts/keys revoke NAME, or give them a new date")
    if soon:
        yield warn("keys file", f"expire within {EXPIRES_SOON.days} days: {some(soon)}", "scripts/keys rotate NAME")
    if not gone and not soon:
        yield ok("keys file", "it can be read, and no key is about to expire")


def files(target: Target) -> Iterator[Finding]:
    """Check that no other user can read the secrets, or change the keys file or the code."""
    if os.name != "posix":
        return
    code = ADDON.parent
    secret = [path for path in secret_files(target) if path.exists()]
    trusted = [Path(path).expanduser() for path in [target.value("ollama_keys_file")] if path]
    trusted += [*target.launched.config_files, code, *sorted(code.rglob("*.py"))]
    writable = dict.fromkeys([*secret, *filter(Path.exists, trusted)])
    found = [*map(check_unreadable, secret), *map(check_unwritable, writable)]
    yield from filter(None, found)
    if not any(found):
        yield ok("files", "nobody else may read secrets, or change what decides")


def secret_files(target: Target) -> Iterator[Path]:
    """The files that hold a key, a private key or what users wrote."""
    named = [target.value(name) for name in ("ollama_api_key_file", "ollama_audit_log")]
    yield from (Path(path).expanduser() for path in named if path)
    yield from target.launched.certificates
    if serve.KEY in serve.read_env_file():
        yield serve.ENV_FILE
    if target.launched.options.ollama_api_key:
        yield from (path for path in target.launched.config_files if "ollama_api_key:" in path.read_text("utf-8"))


def check_unreadable(path: Path) -> Finding | None:
    """Report a file with a secret that other users may read."""
    if allows(path, stat.S_IROTH, stat.S_IXOTH):
        return bad(str(path), "others may read the secret in it", f"chmod 600 {path}")
    if allows(path, stat.S_IRGRP, stat.S_IXGRP):
        return warn(str(path), "its group may read the secret in it", f"chmod 600 {path}, unless that is what you want")
    return None


def check_unwritable(path: Path) -> Finding | None:
    """Report a file that other users may write, or that belongs to one."""
    if path.stat().st_uid not in (0, os.getuid()):
        return bad(str(path), "it belongs to another user, who can change it", f"chown {os.getuid()} {path}")
    if allows(path, stat.S_IWOTH, stat.S_IXOTH):
        return bad(str(path), "others may change it", f"chmod go-w {path}")
    return None


def allows(path: Path, access: int, enter: int) -> bool:
    """Whether the mode of the file has the `access` bit, and those of all directories above it the `enter` bit."""
    path = path.resolve()
    return bool(path.stat().st_mode & access) and all(folder.stat().st_mode & enter for folder in path.parents)
