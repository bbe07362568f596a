"""The signature of the stock `ollama` command line -> the public key that made it, or why not. Pure.

With OLLAMA_AUTH=1 the CLI adds `?ts=<seconds since 1970>` to each request and signs `METHOD,/path?ts=...` with the
Ed25519 key ~/.ollama/id_ed25519. Its header is `Authorization: <public key>:<signature>`, both in base64, the key as in
id_ed25519.pub (RFC 8709). Seen in 0.33, and Ollama itself never verifies it. What is signed is the path on the server:
a path in OLLAMA_HOST is sent and not signed, so that such a request can't be verified.

Neither the body nor the host nor any header is signed, and equal requests within a second carry the same signature.
"""

import base64
import re
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

REPLAY_GRACE = 2.0
"""Seconds in which equal requests may follow each other, where a replay would do harm."""
MAX_REMEMBERED = 10_000

# 51 bytes (the name of the algorithm and the key, each behind its length) and 64 bytes: both always this long.
_VALUE = re.compile(rb"([A-Za-z0-9+/]{68}):([A-Za-z0-9+/]{86}==)")
_ALGORITHM = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"
_TIME = re.compile(rb"[1-9][0-9]{0,11}")


class SignatureError(Exception):
    """A signature that is none; `reason` is one of "malformed", "stale", "bad signature"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Signature:
    """What the header holds: a public key (32 bytes), which proves nothing yet, and a signature (64 bytes)."""

    key: bytes
    value: bytes


def parse(value: bytes) -> Signature | None:
    """The signature in the value of an Authorization header, or None where it holds something else."""
    found = _VALUE.fullmatch(value)
    if not found:
        return None
    key, signature = map(base64.b64decode, found.groups())
    # One signature has one spelling: the last character holds bits that mean nothing.
    if not key.startswith(_ALGORITHM) or base64.b64encode(signature) != found[2]:
        return None
    return Signature(key.removeprefix(_ALGORITHM), signature)


def verify(signature: Signature, method: bytes, target: bytes, now: float, window: float) -> bytes:
    """The public key that signed exactly this method and request target, at most `window` seconds from `now`.

    It takes some 0.1 ms, so ask first whether the key is known at all. Raises SignatureError.
    """
    times = [value for name, value in map(_split, _parameters(target)) if name == b"ts"]
    if len(times) != 1 or not _TIME.fullmatch(times[0]):
        raise SignatureError("malformed", "a signed request has one parameter `ts`, the time in seconds")
    if not abs(now - int(times[0])) <= window:
        raise SignatureError("stale", f"the request was not signed within {window:g} s of now: check the clock")
    try:
        Ed25519PublicKey.from_public_bytes(signature.key).verify(signature.value, method + b"," + target)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        raise SignatureError("bad signature", "the signature is not one of this method, path and time") from None
    return signature.key


def without_ts(target: bytes) -> bytes:
    """The request target as it goes upstream."""
    path = target.partition(b"?")[0]
    kept = [parameter for parameter in _parameters(target) if _split(parameter)[0] != b"ts"]
    return path + (b"?" + b"&".join(kept) if kept else b"")


def _parameters(target: bytes) -> list[bytes]:
    _, mark, query = target.partition(b"?")
    return query.split(b"&") if mark else []


def _split(parameter: bytes) -> tuple[bytes, bytes]:
    name, _, value = parameter.partition(b"=")
    return unquote_to_bytes(name.replace(b"+", b" ")), value


class Replays:
    """When signatures were first used: the latest of them, so that memory is bounded.

    To push one out before its time takes as many other valid signatures, so a key of one's own.
    """

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        self._most = most
        self._first: OrderedDict[bytes, float] = OrderedDict()

    def seen(self, signature: bytes, now: float) -> bool:
        """Was it first used more than REPLAY_GRACE seconds ago? For verified ones alone, by a monotonic clock."""
        first = self._first.setdefault(signature, now)
        if len(self._first) > self._most:
            self._first.popitem(last=False)
        return not 0 <= now - first <= REPLAY_GRACE
