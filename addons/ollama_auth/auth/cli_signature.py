"""Verify the signature that the stock `ollama` command line puts on its requests. Pure.

With OLLAMA_AUTH=1 the CLI adds `?ts=<seconds since 1970>` to each request and signs `METHOD,/path?ts=...` with the
Ed25519 key ~/.ollama/id_ed25519. Its header is `Authorization: <public key>:<signature>`, both in base64, the key as in
id_ed25519.pub. Seen in 0.33; Ollama itself never verifies it. The signed path is the one on the server: a path in
OLLAMA_HOST is sent but not signed, so such a request can't be verified.

Neither the body nor the host nor any header is signed, and equal requests within a second carry the same signature.
"""

import base64
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .credentials import CredentialError
from .keys import parse_ssh_key

# The public key of 51 bytes and the signature of 64: both always have this length.
_VALUE = re.compile(rb"([A-Za-z0-9+/]{68}):([A-Za-z0-9+/]{86}==)")
_TIME = re.compile(rb"[1-9][0-9]{0,11}")


@dataclass(frozen=True, slots=True)
class Signature:
    """A public key (32 bytes), which proves nothing yet, and a signature (64 bytes)."""

    key: bytes
    value: bytes


def parse(value: bytes) -> Signature | None:
    """Parse the value of an Authorization header; None where it holds something else."""
    found = _VALUE.fullmatch(value)
    if not found or (key := parse_ssh_key(found[1])) is None:
        return None
    signature = base64.b64decode(found[2])
    # The last character holds unused bits: only one spelling of a signature is accepted.
    return Signature(key, signature) if base64.b64encode(signature) == found[2] else None


def verify(signature: Signature, method: bytes, target: bytes, now: float, window: float) -> bytes:
    """Return the public key that signed exactly this method and target, at most `window` seconds from `now`.

    This takes some 0.1 ms, so check first whether the key is known at all. Raises CredentialError.
    """
    times = [value for name, value in map(_split, _parameters(target)) if name == b"ts"]
    if len(times) != 1 or not _TIME.fullmatch(times[0]):
        raise CredentialError("malformed", "a signed request has one parameter `ts`, the time in seconds")
    if not abs(now - int(times[0])) <= window:
        raise CredentialError("stale", f"the request was not signed within {window:g} s of now: check the clock")
    try:
        Ed25519PublicKey.from_public_bytes(signature.key).verify(signature.value, method + b"," + target)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        raise CredentialError("bad signature", "the signature does not match this method, path and time") from None
    return signature.key


def without_ts(target: bytes) -> bytes:
    """The request target without its time stamp, as it goes upstream."""
    path = target.partition(b"?")[0]
    kept = [parameter for parameter in _parameters(target) if _split(parameter)[0] != b"ts"]
    return path + (b"?" + b"&".join(kept) if kept else b"")


def _parameters(target: bytes) -> list[bytes]:
    _, mark, query = target.partition(b"?")
    return query.split(b"&") if mark else []


def _split(parameter: bytes) -> tuple[bytes, bytes]:
    name, _, value = parameter.partition(b"=")
    return unquote_to_bytes(name.replace(b"+", b" ")), value
