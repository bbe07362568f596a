"""Who a credential belongs to. Keys are known by their SHA-256 digests only."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from .credentials import MAX_SECRET

_KEY = re.compile(rf"[!-~]{{1,{MAX_SECRET}}}")
SHORT = 16
"""A key of fewer characters than this is worth a warning."""
_NOBODY = bytes(32)


class KeyFault(ValueError):
    """A key that can't be used; the message says why and what to do, never the key."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody a key was given to."""

    name: str


@dataclass(frozen=True, slots=True)
class Key:
    """The digest of a secret (32 bytes, not shown) and whose it is."""

    digest: bytes = field(repr=False)
    principal: Principal


class KeyRing:
    """The keys in force, never changed: a new set is a new ring."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = {key.digest: key for key in keys}

    def find(self, secret: bytes) -> Principal | None:
        """Whose secret this is, or None. The time it takes tells nothing: what is looked up and compared is a
        digest, which nobody can steer byte by byte."""
        digest = hashlib.sha256(secret).digest()
        key = self._keys.get(digest)
        known = hmac.compare_digest(key.digest if key else _NOBODY, digest)
        return key.principal if key and known else None


def digest(secret: str) -> bytes:
    """The digest of a key that the operator set. Raises KeyFault where the key can't be sent in a header."""
    if not secret.strip():
        raise KeyFault("the key is empty")
    if not _KEY.fullmatch(secret):
        raise KeyFault(
            f"the key has white space, control or non-ASCII characters in it, or is longer than {MAX_SECRET} characters"
        )
    return hashlib.sha256(secret.encode()).digest()


def fingerprint(secret: bytes) -> str:
    """A short name for a secret nobody has: enough to see that two attempts used the same one, not to recover it."""
    return hashlib.sha256(secret).hexdigest()[:8]
