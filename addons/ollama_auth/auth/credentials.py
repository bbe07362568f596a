"""Read the one credential of a request from its header fields. Pure, and total: any bytes give a secret or an error.

Bearer: RFC 6750 section 2.1. Basic: RFC 7617, with the key as the password, which is how client libraries send user
info in a URL. `x-api-key`: sent by Anthropic's clients. Names of schemes have no case (RFC 9110 section 11.1).
"""

import base64
import binascii
import hmac
import re

from ..errors import RefusedError
from ..http.head import Fields, values

MAX_SECRET = 512
"""Bytes; far more than any key has, far less than would cost anything."""
MAX_FIELD = 2048

MALFORMED = "the key is empty, too long, or has white space or other characters in it"

_VISIBLE = re.compile(rb"[!-~]*")


class CredentialError(RefusedError):
    """No usable credential; `reason` says whether there is none, or what is wrong with it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, 401, message)


def parse(fields: Fields) -> bytes:
    """Return the secret that a request presents, as bytes of visible ASCII. Raises CredentialError.

    Some SDKs send the key in both fields: that is one credential if both hold the same. Others send an empty one beside
    it, from a variable that is empty: that is none.
    """
    authorization = _single(fields, b"authorization")
    api_key = _single(fields, b"x-api-key")
    sent = [_authorization(authorization)] if authorization is not None else []
    sent += [_checked(api_key)] if api_key is not None else []
    secrets = [secret for secret in sent if secret]
    if not sent:
        raise CredentialError("missing", "send the key as `Authorization: Bearer <key>`")
    if not secrets:
        raise CredentialError("malformed", MALFORMED)
    if len(secrets) == 2 and not hmac.compare_digest(secrets[0], secrets[1]):
        raise CredentialError("duplicate", "Authorization and x-api-key hold different keys; send one")
    return secrets[0]


def _single(fields: Fields, name: bytes) -> bytes | None:
    """The one value of a field that is not empty; empty if all are, None if there is none."""
    sent = values(fields, name)
    found = [value for value in sent if value]
    if len(found) > 1:
        raise CredentialError("duplicate", f"the {name.decode()} header was sent more than once")
    return found[0] if found else b"" if sent else None


def _authorization(value: bytes) -> bytes:
    if len(value) > MAX_FIELD:
        raise CredentialError("malformed", "the credential is too long")
    scheme, _, rest = value.partition(b" ")
    match scheme.lower():
        case b"":
            return _checked(value)
        case b"bearer":
            return _checked(rest.lstrip(b" "))
        case b"basic":
            return _basic(rest.lstrip(b" "))
        case _:
            raise CredentialError("malformed", "the Authorization header is not `Bearer <key>`")


def _basic(token: bytes) -> bytes:
    if not token:
        return token
    try:
        _, colon, password = base64.b64decode(token, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        raise CredentialError("malformed", "the Basic credential is not base64") from None
    if not colon:
        raise CredentialError("malformed", "the Basic credential is not user:key")
    return _checked(password)  # Any user name will do: the key alone identifies the principal.


def _checked(secret: bytes) -> bytes:
    """Return a secret, which may be empty."""
    if len(secret) > MAX_SECRET or not _VISIBLE.fullmatch(secret):
        raise CredentialError("malformed", MALFORMED)
    return secret
