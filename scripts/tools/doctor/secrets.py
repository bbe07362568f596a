"""Are there keys, can they be guessed, and who else can read or change them?"""

import math
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ollama_auth import settings
from ollama_auth.auth import keys

from .. import serve
from .findings import SOON, Finding, Patient, bad, ok, some, warn

WEAK, POOR = 50.0, 80.0
"""Bits of a key: below the first it can be guessed, below the second that may change."""


def credentials(patient: Patient) -> Iterator[Finding]:
    """What the gate would say of its keys, and whether the one key can be guessed."""
    names = ("ollama_api_key", "ollama_api_key_file", "ollama_keys_file")
    if not any(patient.options.get(name) is not None or name.upper() in patient.environment for name in names):
        yield ok("key", "there is none yet: scripts/serve makes one")
        return
    options: Any = SimpleNamespace(**{name: patient.options.get(name) for name in names})
    try:
        ring, _ = settings.read_keys(options, patient.environment)
    except settings.SettingsError as fault:
        yield from (bad("key", *divided(line)) for line in str(fault).splitlines())
        return
    if "ollama_api_key" in patient.options:
        yield warn("key", "it is on a command line, which all users can see", "set OLLAMA_API_KEY_FILE instead")
    if secret := the_key(patient):
        yield strength(secret)
    if patient.given("ollama_keys_file"):
        yield from named_keys(ring.principals.values(), time.time())


def divided(line: str) -> tuple[str, str]:
    """(what is wrong, what to do) of a message in the words of the gate."""
    parts = re.split(r"; |: (?=make one)", line, maxsplit=1)
    return parts[0], parts[1] if parts[1:] else "see README.md"


def the_key(patient: Patient) -> str | None:
    """The one key, which read_keys took already."""
    for place in (patient.options, {name.lower(): value for name, value in patient.environment.items()}):
        if path := place.get("ollama_api_key_file"):
            return Path(path).expanduser().read_text("utf-8", "replace").rstrip("\r\n")
        if secret := place.get("ollama_api_key"):
            return secret
    return None


def bits(secret: str) -> float:
    """At most so much is unknown of a key whose letters are as frequent as these are (Shannon's entropy of it)."""
    text = secret.removeprefix("sk-ollama-")
    return sum(-count * math.log2(count / len(text)) for count in Counter(text).values()) if text else 0.0


def strength(secret: str) -> Finding:
    remedy = 'make another: echo "sk-ollama-$(openssl rand -hex 16)"'
    found = bits(secret)
    if len(secret) < keys.SHORT or found < WEAK:
        return bad("key", "it is short or repeats itself, and can be guessed", remedy)
    if found < POOR:
        return warn("key", "it is not as strong as it should be", remedy)
    return ok("key", "it is strong")


def named_keys(principals: Iterable[keys.Principal], now: float) -> Iterator[Finding]:
    expires = [(owner.expires, owner.name) for owner in principals if owner.expires is not None]
    gone = sorted(name for when, name in expires if when <= now)
    soon = sorted(name for when, name in expires if now < when <= now + SOON.total_seconds())
    if gone:
        yield warn("keys file", f"expired: {some(gone)}", "scripts/keys revoke NAME, or give them a new date")
    if soon:
        yield warn("keys file", f"expire within {SOON.days} days: {some(soon)}", "scripts/keys rotate NAME")
    if not gone and not soon:
        yield ok("keys file", "it can be read, and no key is about to expire")


def files(patient: Patient) -> Iterator[Finding]:
    """Who may read secrets, and who may change what decides."""
    if os.name != "posix":
        return
    named = [patient.given(name) for name in ("ollama_api_key_file", "ollama_audit_log")]
    secrets = [Path(path).expanduser() for path in named if path] + [*patient.certificates, *env_file_with_a_key()]
    changed = [Path(path).expanduser() for path in [patient.given("ollama_keys_file")] if path]
    changed += [serve.REPOSITORY / "addons", *sorted((serve.REPOSITORY / "addons").rglob("*.py"))]
    there = [path for path in secrets if path.exists()]
    found = [*map(hidden, there), *map(guarded, [*there, *filter(Path.exists, changed)])]
    yield from filter(None, found)
    if not any(found):
        yield ok("files", "nobody else may read secrets, or change what decides")


def env_file_with_a_key() -> Iterator[Path]:
    if serve.ENV_FILE.exists() and serve.KEY in serve.read_env(serve.ENV_FILE.read_text("utf-8", "replace")):
        yield serve.ENV_FILE


def hidden(path: Path) -> Finding | None:
    """A file with a secret that others may read."""
    if within_reach(path, stat.S_IROTH, stat.S_IXOTH):
        return bad(str(path), "others may read the secret in it", f"chmod 600 {path}")
    if within_reach(path, stat.S_IRGRP, stat.S_IXGRP):
        return warn(str(path), "its group may read the secret in it", f"chmod 600 {path}, unless that is what you want")
    return None


def guarded(path: Path) -> Finding | None:
    """A file that others may write, or that is theirs."""
    if path.stat().st_uid not in (0, os.getuid()):
        return bad(str(path), "it belongs to another user, who can change it", f"chown {os.getuid()} {path}")
    if within_reach(path, stat.S_IWOTH, stat.S_IXOTH):
        return bad(str(path), "others may change it", f"chmod go-w {path}")
    return None


def within_reach(path: Path, may: int, enter: int) -> bool:
    """The mode of a file lets them, and so do the folders that it is in."""
    path = path.resolve()
    return bool(path.stat().st_mode & may) and all(folder.stat().st_mode & enter for folder in path.parents)
