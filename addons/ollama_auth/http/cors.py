"""Which browser pages may talk to the gate: preflights answered, and the header fields that let a page read answers.
Pure.

The CORS protocol is the Fetch standard's. Ollama does it by an option of its own; here its fields are replaced, and
Origin is never forwarded. Keys travel in headers that a page sets itself, so credentials in the sense of CORS, which
are cookies, are never allowed. Without origins there is no CORS.
"""

import re
from collections.abc import Collection

from .head import TOKEN, Fields, values
from .responses import Answer

ANY, OPAQUE = "*", "null"
"""Every origin, and the one of sandboxed frames and files, which `*` does not include here."""

EXPOSED = b"X-Request-Id, Request-Id, Retry-After, X-Should-Retry, RateLimit, RateLimit-Policy"
"""Response fields that a page may read besides those of the Fetch standard's safelist."""

# RFC 6454 section 6.2, as a browser writes it: a scheme, a host in lower case, a port that is not the default one.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
_DEFAULT_PORTS = ("http://", "80"), ("https://", "443")
_NAMES = re.compile(rb"%s(?:[ \t]*,[ \t]*%s)*" % (TOKEN.pattern, TOKEN.pattern))
_REQUESTED = {b"access-control-request-method", b"access-control-request-headers", b"origin"}


def check_origin(text: str) -> str | None:
    """What is wrong with an origin of the option, or None."""
    if text in (ANY, OPAQUE):
        return None
    found = _ORIGIN.fullmatch(text)
    if not found:
        return "is not an origin: write it as scheme://host or scheme://host:port, in lower case, without a path"
    if found[1] and int(found[1]) > 65535:
        return "has a port that does not exist"
    if any(text.startswith(scheme) and found[1] == port for scheme, port in _DEFAULT_PORTS):
        return "has the default port, which browsers leave out: leave it out too"
    return None


def preflight(method: bytes, fields: Fields, origins: Collection[str]) -> Answer | None:
    """The answer to a preflight of a listed origin, which carries no key; None for every other request."""
    allowed = _allowed(fields, origins)
    if method != b"OPTIONS" or allowed is None or len(values(fields, b"access-control-request-method")) != 1:
        return None
    # A page may send what it likes: what is not on the gate's list goes nowhere.
    names = b", ".join(values(fields, b"access-control-request-headers"))
    granted = ((b"access-control-allow-headers", names),) if _NAMES.fullmatch(names) else ()
    answer = (
        (b"access-control-allow-origin", allowed),
        (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE"),
        *granted,
        (b"access-control-max-age", b"600"),
        (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    )
    return Answer(204, answer, b"")


def response_fields(fields: Fields, origins: Collection[str]) -> Fields:
    """What to add to every response and refusal to a request with these fields. A cache learns by Vary that it matters
    whose page asks, also where this one may not read."""
    if not origins:
        return ()
    allowed = _allowed(fields, origins)
    readable = ((b"access-control-allow-origin", allowed), (b"access-control-expose-headers", EXPOSED))
    return (*(readable if allowed is not None else ()), (b"vary", b"Origin"))


def strip(fields: Fields) -> Fields:
    """The fields of a response of Ollama's without its own CORS, and with one Vary: less Origin, which it never saw."""
    kept = tuple((n, v) for n, v in fields if n.lower() != b"vary" and not n.lower().startswith(b"access-control-"))
    listed = [item.strip(b" \t") for value in values(fields, b"vary") for item in value.split(b",")]
    varies = {item.lower(): item for item in reversed(listed) if item and item.lower() not in _REQUESTED}
    return (*kept, (b"vary", b", ".join(reversed(varies.values())))) if varies else kept


def _allowed(fields: Fields, origins: Collection[str]) -> bytes | None:
    """The value of Access-Control-Allow-Origin, or None where there is none."""
    sent = values(fields, b"origin")
    if len(sent) != 1:
        return None
    origin = sent[0].decode("latin-1")
    if origin in origins and origin != ANY:
        return sent[0]
    return ANY.encode() if ANY in origins and origin != OPAQUE else None
