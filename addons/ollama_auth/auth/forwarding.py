"""The allow-list of request header fields that go upstream. Pure.

Ollama reads no credential, but it copies the headers of requests for cloud models to ollama.com. A field that is not
on the list is not forwarded.
"""

import re
from collections.abc import Collection

from ..errors import OllamaAuthError
from ..http.head import TOKEN, Fields, listed
from .redaction import mask_name

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
_CREDENTIALS = re.compile(
    r"(.*[-_])?(authorization|cookie2?|tokens?|secret|password|passwd|credentials?|jwt|assertion"
    r"|(api|access|auth|subscription)[-_]?key)([-_].*)?"
)
"""Names of fields that carry a credential: a word of them says so."""
_FRAMING = {"content-length", "transfer-encoding"}
NEVER = frozenset(_HOP_BY_HOP | _FRAMING | {"host", "expect", "authorization", "cookie"})
"""Fields that an operator cannot add: credentials, hop-by-hop fields, and those that frame a message."""

# Present in almost every request, so not worth a word in the log.
_UNREMARKABLE = frozenset({b"connection", b"host", b"expect"})


class HeaderNameError(OllamaAuthError, ValueError):
    """A header name that an operator cannot add to the allow-list; the message says why."""


def extend(names: Collection[str]) -> frozenset[bytes]:
    """Return the allow-list with the operator's names added, in lower case. Raises HeaderNameError."""
    lowered = {name.strip().lower() for name in names}
    for name in sorted(lowered):
        if not TOKEN.fullmatch(name.encode("utf-8", "replace")):
            raise HeaderNameError(f"{name!r} is not a valid header name")
        if _CREDENTIALS.fullmatch(name):
            raise HeaderNameError(f"{name} is never forwarded: it carries a credential, and may reach ollama.com")
        if name in NEVER:
            raise HeaderNameError(f"{name} is never forwarded: it belongs to one connection")
    return FORWARDED | {name.encode() for name in lowered}


def split(fields: Fields, allowed: Collection[bytes]) -> tuple[Fields, tuple[str, ...]]:
    """Return (fields to forward, names of the stripped fields in lower case and order).

    A name that may hold a key is masked.
    """
    kept: list[tuple[bytes, bytes]] = []
    stripped: dict[str, None] = {}
    # RFC 9110 section 7.6.1. A client must not be able to strip the fields that frame its body.
    ends_here = listed(fields, b"connection") - {name.encode() for name in _FRAMING}
    for name, value in fields:
        lower = name.lower()
        if lower in allowed and lower not in ends_here:
            kept.append((name, value))
        elif lower not in _UNREMARKABLE:
            stripped[mask_name(name)] = None
    return tuple(kept), tuple(stripped)
