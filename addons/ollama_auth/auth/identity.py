"""Identify the principal of a request, by a key or by a signature of the stock `ollama` command line."""

from dataclasses import dataclass

from ..http.head import Head, values
from . import cli_signature, credentials
from .cli_signature import Signature
from .credentials import CredentialError
from .keys import KeyRing, Principal, fingerprint

UNKNOWN = "unknown:"
"""The prefix of a fingerprint, where the log has the name of a principal otherwise."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A principal, and the credential that proved it."""

    principal: Principal
    secret: bytes
    """The key, or the value of the Authorization field that holds a signature. It must not go upstream."""
    signature: Signature | None = None


def identify(head: Head, target: bytes, ring: KeyRing, now: float, window: float) -> Identity:
    """Return the identity behind a request. Raises CredentialError.

    `target` is the request target in origin form; `now` is in seconds since 1970, and a signature may be `window`
    seconds away from it.
    """
    authorization = values(head.fields, b"authorization")
    signature = cli_signature.parse(authorization[0]) if len(authorization) == 1 else None
    if signature:
        return _by_signature(head, target, ring, signature, authorization[0], now, window)
    secret = credentials.parse(head.fields)
    principal = ring.find(secret)
    if principal is None:
        raise _unknown("the key is not known here", secret)
    return Identity(principal, secret)


def find_again(identity: Identity, ring: KeyRing) -> Principal | None:
    """Return the principal that a credential belongs to now, in a ring that may be newer."""
    return ring.find_ssh(identity.signature.key) if identity.signature else ring.find(identity.secret)


def _by_signature(
    head: Head, target: bytes, ring: KeyRing, signature: Signature, sent: bytes, now: float, window: float
) -> Identity:
    if values(head.fields, b"x-api-key"):
        raise CredentialError("duplicate", "a signed request holds no other key")
    principal = ring.find_ssh(signature.key)
    if principal is None:
        raise _unknown("the public key is not known here", signature.key)
    cli_signature.verify(signature, head.method, target, now, window)
    return Identity(principal, sent, signature)


def _unknown(message: str, credential: bytes) -> CredentialError:
    error = CredentialError("unknown", message)
    error.key = UNKNOWN + fingerprint(credential)
    return error
