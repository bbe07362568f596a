"""Identify the principal of a request, by a key or by a signature of the stock `ollama` command line."""

from dataclasses import dataclass, field

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
    secret: bytes = field(repr=False)
    """The key, or the value of the Authorization field that holds a signature. It must not go upstream."""
    signature: Signature | None = field(default=None, repr=False)


def identify(head: Head, target: bytes, ring: KeyRing, now: float, window: float) -> Identity:
    """Return the identity behind a request. Raises CredentialError.

    `target` is the request target in origin form; `now` is in seconds since 1970, and a signature may be `window`
    seconds away from it.
    """
    authorization = [value for value in values(head.fields, b"authorization") if value]
    signature = cli_signature.parse(authorization[0]) if len(authorization) == 1 else None
    if signature and any(values(head.fields, b"x-api-key")):
        raise CredentialError("duplicate", "a signed request holds no other key")
    secret = authorization[0] if signature else credentials.parse(head.fields)
    principal = ring.find_ssh(signature.key) if signature else ring.find(secret)
    if principal is None:
        error = CredentialError("unknown", f"the {'public ' if signature else ''}key is not known here")
        error.key = UNKNOWN + fingerprint(signature.key if signature else secret)
        raise error
    if signature:
        cli_signature.verify(signature, head.method, target, now, window)
    return Identity(principal, secret, signature)


def may_be_known(head: Head, ring: KeyRing) -> bool:
    """Tell whether `identify` may return an identity; signatures are not verified."""
    if any(map(cli_signature.parse, values(head.fields, b"authorization"))):
        return True
    try:
        return ring.find(credentials.parse(head.fields)) is not None
    except CredentialError:
        return False


def find_again(identity: Identity, ring: KeyRing) -> Principal | None:
    """Return the principal that a credential belongs to now, in a ring that may be newer."""
    return ring.find_ssh(identity.signature.key) if identity.signature else ring.find(identity.secret)
