"""Principals, and the keys that identify them. Of a secret only its SHA-256 digest is kept. Pure."""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from .. import clock
from ..errors import OllamaAuthError
from .credentials import MAX_SECRET

_KEY = re.compile(rf"[!-~]{{1,{MAX_SECRET}}}")
SHORT = 16
"""A key of fewer characters than this is worth a warning."""
# RFC 8709 section 4: the type, then the 32 bytes of the key, each behind its length in four bytes.
_SSH_PREFIX = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"
_SSH_BLOB = re.compile(rb"[A-Za-z0-9+/]{68}")


class InvalidKeyError(OllamaAuthError, ValueError):
    """A key that can't be used; the message says why and what to do, never the key."""


class Scope(StrEnum):
    """A permission of a key, and what it is for. `all` grants every other one but BY_NAME."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Self:
        scope = str.__new__(cls, name)
        scope._value_, scope.meaning = name, meaning
        return scope

    INFER = "infer", "chat and complete"
    EMBED = "embed", "make embeddings"
    LIST = "list", "see models"
    PULL = "pull", "download models"
    WRITE = "write", "create and change models"
    DELETE = "delete", "delete models"
    PUSH = "push", "upload models"
    CLOUD = "cloud", "use cloud models and web search"
    ACCOUNT = "account", "the operator's own account at ollama.com"
    ADMIN = "admin", "the console: see and change everything"
    ALL = "all", "everything but account and admin"


BY_NAME = frozenset({Scope.ACCOUNT, Scope.ADMIN})
"""The scopes that have to be named: the operator's own account at ollama.com, and the keys of others."""

DEFAULT_SCOPES = frozenset({Scope.INFER, Scope.EMBED, Scope.LIST})
"""The scopes of a key in a keys file that names none."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a key and its permissions (all by default).

    Models are patterns as they were written; None allows all. `expires` is in seconds since 1970. `note` is for people.
    """

    name: str
    scopes: frozenset[Scope] = frozenset(Scope)
    models: tuple[str, ...] | None = None
    expires: float | None = None
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None

    @property
    def tokens_limited(self) -> bool:
        return (self.tokens_per_day, self.tokens_per_month) != (None, None)

    disabled: bool = False
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A credential of a principal: the digest of a secret (32 bytes, not in its repr), or a public key of the stock CLI
    (32 bytes). A key that was replaced is valid until a time in seconds since 1970."""

    digest: bytes | None = field(repr=False)
    principal: Principal
    ssh_ed25519: bytes | None = None
    until: float | None = None

    def owner(self) -> Principal | None:
        """The principal, or None once the key is no longer valid."""
        return self.principal if self.until is None or clock.wall() < self.until else None


class KeyRing:
    """The keys in force. It is immutable, and false without a key."""

    def __init__(self, keys: Iterable[Key]) -> None:
        """Index the keys. Raises InvalidKeyError where two have the same secret, as it would identify neither."""
        self._by_digest: dict[bytes, Key] = {}
        self._by_ssh: dict[bytes, Key] = {}
        self._by_name: dict[str, list[Key]] = {}
        self.principals: dict[str, Principal] = {}
        for key in keys:
            for index, known_by in ((self._by_digest, key.digest), (self._by_ssh, key.ssh_ed25519)):
                if known_by is not None and (other := index.setdefault(known_by, key)) is not key:
                    names = f"{other.principal.name} and {key.principal.name}"
                    raise InvalidKeyError(f"{names} have the same key; give each of them one of its own")
            self.principals[key.principal.name] = key.principal
            self._by_name.setdefault(key.principal.name, []).append(key)

    def __len__(self) -> int:
        return len(self._by_digest) + len(self._by_ssh)

    def find(self, secret: bytes) -> Principal | None:
        """Find the principal of a secret. An expired principal is still found; a replaced key is not.

        The time it takes reveals nothing: a digest is looked up and compared, which can't be guessed byte by byte.
        """
        digest = hashlib.sha256(secret).digest()
        key = self._by_digest.get(digest)
        known = hmac.compare_digest((key and key.digest) or bytes(32), digest)
        return key.owner() if key and known else None

    def keys_of(self, name: str) -> list[Key]:
        """Return the keys of a principal: the one in use, and perhaps the one it replaced."""
        return self._by_name.get(name, [])

    def until(self, key: Key) -> float | None:
        """The time until which a key with the same secret is valid here, if it is one that was replaced."""
        found = self._by_digest.get(key.digest) if key.digest else None
        return found.until if found else None

    def holds(self, secret: bytes) -> bool:
        """Whether a text is a key, also a replaced one. It proves nothing: logs ask this of what clients send."""
        return hashlib.sha256(secret).digest() in self._by_digest

    def find_ssh(self, public_key: bytes) -> Principal | None:
        """Find the principal of a public key, which proves nothing without a signature."""
        key = self._by_ssh.get(public_key)
        return key.owner() if key else None


def new_key() -> str:
    """Make a key of 128 random bits."""
    return f"sk-ollama-{secrets.token_hex(16)}"


def digest(secret: str) -> bytes:
    """Digest a key that the operator set. Raises InvalidKeyError where the key can't be sent in a header."""
    if not secret.strip():
        raise InvalidKeyError("the key is empty")
    if not _KEY.fullmatch(secret):
        raise InvalidKeyError(
            f"the key has white space, control or non-ASCII characters in it, or is longer than {MAX_SECRET} characters"
        )
    return hashlib.sha256(secret.encode()).digest()


def fingerprint(secret: bytes) -> str:
    """A short name for an unknown secret: enough to see that two attempts used the same one, not to recover it."""
    return hashlib.sha256(secret).hexdigest()[:8]


def parse_ssh_key(encoded: bytes) -> bytes | None:
    """The 32 bytes of an Ed25519 public key in base64, as in id_ed25519.pub; None if it is not one."""
    blob = base64.b64decode(encoded) if _SSH_BLOB.fullmatch(encoded) else b""
    return blob.removeprefix(_SSH_PREFIX) if blob.startswith(_SSH_PREFIX) else None
