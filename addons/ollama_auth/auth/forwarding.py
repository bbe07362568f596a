"""What of a request is forwarded, and what is stripped. Pure.

An allow-list: Ollama looks at no credential, but it copies the headers of requests for cloud models to ollama.com, and
writes the query to its log. What nobody listed goes nowhere.
"""

import re
from collections.abc import Callable, Collection
from urllib.parse import unquote_plus, unquote_to_bytes

from ..http.head import Fields, connection_options
from .keys import SHORT

FORWARDED = frozenset({
    b"accept",
    b"accept-encoding",
    b"anthropic-beta",
    b"anthropic-version",
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"transfer-encoding",
    b"user-agent",
})  # fmt: skip

_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "http2-settings"}
_CREDENTIALS = {"authorization", "proxy-authorization", "x-api-key"}
_FRAMING = {"content-length", "transfer-encoding"}
NEVER = frozenset(_HOP_BY_HOP | _CREDENTIALS | _FRAMING | {"host", "expect"})
"""What an operator can't add to the list: credentials, what belongs to one connection, and what frames a message."""

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
# Of one connection and always there: no news in a log.
_UNREMARKABLE = frozenset({b"connection", b"host", b"expect"})
_SECRET_PARAMETERS = frozenset({"access_token", "api_key", "api-key", "apikey", "auth", "key", "token"})

MASKED_PATH = b"/***"
MAX_SHOWN = 1024
"""Bytes of a path that are kept for logs and viewers, and searched for keys: a stranger chooses how many there are."""
_SEGMENT = re.compile(rb"[^/]+")
_PART = re.compile(rb"[\w.~+-]+=*")  # What keys are made of, and the padding of base64.


class HeaderNameError(ValueError):
    """A header name that an operator can't have forwarded; the message says why."""


def extend(names: Collection[str]) -> frozenset[bytes]:
    """The allow-list with the operator's own names added. Raises HeaderNameError."""
    lowered = {name.strip().lower() for name in names}
    for name in sorted(lowered):
        if not _NAME.fullmatch(name):
            raise HeaderNameError(f"{name!r} is not the name of a header")
        if name in NEVER:
            raise HeaderNameError(f"{name} is never forwarded: it is a credential or belongs to one connection")
    return FORWARDED | {name.encode() for name in lowered}


type KeyLookup = Callable[[bytes], object]
"""Says whose a secret is, or None."""


def split(fields: Fields, allowed: Collection[bytes], known: KeyLookup | None = None) -> tuple[Fields, tuple[str, ...]]:
    """(what is forwarded, the names of what is stripped in lower case and order; those that may be a key masked)."""
    kept: list[tuple[bytes, bytes]] = []
    stripped: dict[str, None] = {}
    # RFC 9110 section 7.6.1; but no client may have what frames its body taken away.
    ends_here = connection_options(fields) - {name.encode() for name in _FRAMING}
    for name, value in fields:
        lower = name.lower()
        if lower in allowed and lower not in ends_here:
            kept.append((name, value))
        elif lower not in _UNREMARKABLE:
            stripped["***" if is_secret(name, known) else lower.decode("ascii", "replace")] = None
    return tuple(kept), tuple(stripped)


def clean_target(target: bytes, secret: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The request target without parameters that are named like a credential or hold the one that was presented.

    Returns it and the names taken out, as `?name`. Raises ValueError where the secret is in the path itself, unless it
    is so short that it may well be a word of Ollama's.
    """
    path, mark, query = target.partition(b"?")
    kept: list[bytes] = []
    removed: list[str] = []
    for parameter in query.split(b"&") if mark else ():
        name = unquote_plus(parameter.partition(b"=")[0].decode("ascii")).lower()
        if name in _SECRET_PARAMETERS:
            removed.append("?" + name)
        elif _holds(parameter, secret):
            removed.append("?(the key)")
        else:
            kept.append(parameter)
    cleaned = path + (b"?" + b"&".join(kept) if kept else b"")
    if len(secret) >= SHORT and _holds(cleaned, secret):
        raise ValueError("the key is in the path")
    return cleaned, tuple(removed)


def _holds(part: bytes, secret: bytes) -> bool:
    return secret in part or secret in unquote_to_bytes(part)


def without(fields: Fields, secret: bytes) -> Fields:
    """The fields that do not hold the secret; one so short that anything may hold it is not looked for."""
    return tuple(field for field in fields if secret not in field[1]) if len(secret) >= SHORT else fields


def is_secret(text: bytes, known: KeyLookup | None) -> bool:
    """It looks like a key, or is one."""
    return text[:3].lower() == b"sk-" or (known is not None and known(text) is not None)


def mask_path(path: bytes, known: KeyLookup | None) -> bytes:
    """The first of a decoded path, to be logged: without parts that look like a key, or that `known` says are one."""

    def masked(found: re.Match[bytes]) -> bytes:
        return b"***" if is_secret(found[0], known) else found[0]

    return _PART.sub(masked, _SEGMENT.sub(masked, path[:MAX_SHOWN]))
