"""Who a credential belongs to. Keys are known by their SHA-256 digests only."""

import hashlib
import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from .credentials import MAX_SECRET

_KEY = re.compile(rf"[!-~]{{1,{MAX_SECRET}}}")
SHORT = 16
"""A key of fewer characters than this is worth a warning."""
_NOBODY = bytes(32)


class InvalidKeyError(ValueError):
    """A key that can't be used; the message says why and what to do, never the key."""


class Scope(StrEnum):
    """What a key may do. `all` is every other one but `account`, which has to be named: it is the operator's own."""

    INFER = "infer"
    EMBED = "embed"
    LIST = "list"
    PULL = "pull"
    WRITE = "write"
    DELETE = "delete"
    PUSH = "push"
    CLOUD = "cloud"
    ACCOUNT = "account"
    ALL = "all"


DEFAULT_SCOPES = frozenset({Scope.INFER, Scope.EMBED, Scope.LIST})
"""What a key in a keys file may do where it names no scopes."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody a key was given to, and what they may do: everything, unless something is said.

    Models are patterns as they were written, and None is all of them. `expires` is in seconds since 1970.
    """

    name: str
    scopes: frozenset[Scope] = frozenset(Scope)
    models: tuple[str, ...] | None = None
    expires: float | None = None
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """What somebody shows that they are who they are: the digest of a secret (32 bytes, not shown), or a public key of
    the stock CLI (32 bytes). A key that was replaced is valid until a time in seconds since 1970."""

    digest: bytes | None = field(repr=False)
    principal: Principal
    ssh_ed25519: bytes | None = None
    until: float | None = None

    def owner(self) -> Principal | None:
        """Who may use it now: its principal, or nobody any more."""
        return self.principal if self.until is None or time.time() < self.until else None


class KeyRing:
    """The keys in force, never changed: a new set is a new ring. Without a key it is false."""

    def __init__(self, keys: Iterable[Key]) -> None:
        """Raises InvalidKeyError where two have the same secret: nobody could say whose it is."""
        self._by_digest: dict[bytes, Key] = {}
        self._by_ssh: dict[bytes, Key] = {}
        self.principals: dict[str, Principal] = {}
        for key in keys:
            _enter(self._by_digest, key.digest, key)
            _enter(self._by_ssh, key.ssh_ed25519, key)
            self.principals[key.principal.name] = key.principal

    def __len__(self) -> int:
        return len(self._by_digest) + len(self._by_ssh)

    def find(self, secret: bytes) -> Principal | None:
        """Whose secret this is, or None. The time it takes tells nothing: what is looked up and compared is a
        digest, which nobody can steer byte by byte. Who has expired is still found; a replaced key is not."""
        digest = hashlib.sha256(secret).digest()
        key = self._by_digest.get(digest)
        known = hmac.compare_digest((key and key.digest) or _NOBODY, digest)
        return key.owner() if key and known else None

    def find_ssh(self, public_key: bytes) -> Principal | None:
        """Whose public key this is, or None. It is no secret, and proves nothing without a signature."""
        key = self._by_ssh.get(public_key)
        return key.owner() if key else None


def _enter(index: dict[bytes, Key], known_by: bytes | None, key: Key) -> None:
    if known_by is not None and (other := index.setdefault(known_by, key)) is not key:
        names = f"{other.principal.name} and {key.principal.name}"
        raise InvalidKeyError(f"{names} have the same key; give each of them one of its own")


def digest(secret: str) -> bytes:
    """The digest of a key that the operator set. Raises InvalidKeyError where the key can't be sent in a header."""
    if not secret.strip():
        raise InvalidKeyError("the key is empty")
    if not _KEY.fullmatch(secret):
        raise InvalidKeyError(
            f"the key has white space, control or non-ASCII characters in it, or is longer than {MAX_SECRET} characters"
        )
    return hashlib.sha256(secret.encode()).digest()


def fingerprint(secret: bytes) -> str:
    """A short name for a secret nobody has: enough to see that two attempts used the same one, not to recover it."""
    return hashlib.sha256(secret).hexdigest()[:8]
