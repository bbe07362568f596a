"""What of a request is forwarded, and what is stripped. Pure.

An allow-list: Ollama looks at no credential, but it copies the headers of requests for cloud models to ollama.com, and
writes the query to its log. What nobody listed goes nowhere.
"""

import re
from collections.abc import Callable, Collection
from urllib.parse import unquote_plus

from .head import Fields

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
NEVER = frozenset(_HOP_BY_HOP | _CREDENTIALS | {"host", "expect", "content-length", "transfer-encoding"})
"""What an operator can't add to the list: credentials, what belongs to one connection, and what frames a message."""

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
# Of one connection and always there: no news in a log.
_UNREMARKABLE = frozenset({b"connection", b"host", b"expect"})
_SECRET_PARAMETERS = frozenset({"access_token", "api_key", "api-key", "apikey", "auth", "key", "token"})

MASKED_PATH = b"/***"


class HeaderFault(ValueError):
    """A header name that an operator can't have forwarded; the message says why."""


def extend(names: Collection[str]) -> frozenset[bytes]:
    """The allow-list with the operator's own names added. Raises HeaderFault."""
    lowered = {name.strip().lower() for name in names}
    for name in sorted(lowered):
        if not _NAME.fullmatch(name):
            raise HeaderFault(f"{name!r} is not the name of a header")
        if name in NEVER:
            raise HeaderFault(f"{name} is never forwarded: it is a credential or belongs to one connection")
    return FORWARDED | {name.encode() for name in lowered}


def split(fields: Fields, allowed: Collection[bytes]) -> tuple[Fields, tuple[str, ...]]:
    """(what is forwarded, the names of what is stripped in lower case and order)."""
    kept: list[tuple[bytes, bytes]] = []
    stripped: dict[str, None] = {}
    for name, value in fields:
        lower = name.lower()
        if lower in allowed:
            kept.append((name, value))
        elif lower not in _UNREMARKABLE:
            stripped[lower.decode("ascii", "replace")] = None
    return tuple(kept), tuple(stripped)


def clean_target(target: bytes, secret: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The request target without parameters that are named like a credential or hold the one that was presented.

    Returns it and the names taken out, as `?name`. Raises ValueError where the secret is in the path itself.
    """
    path, mark, query = target.partition(b"?")
    key = secret.decode("ascii")
    if key in unquote_plus(path.decode("ascii")):
        raise ValueError("the key is in the path")
    if not mark:
        return target, ()
    kept: list[bytes] = []
    removed: list[str] = []
    for parameter in query.split(b"&"):
        name = unquote_plus(parameter.partition(b"=")[0].decode("ascii")).lower()
        if name in _SECRET_PARAMETERS:
            removed.append("?" + name)
        elif key in unquote_plus(parameter.decode("ascii")):
            removed.append("?(the key)")
        else:
            kept.append(parameter)
    return path + (b"?" + b"&".join(kept) if kept else b""), tuple(removed)


def mask_path(path: bytes, known: Callable[[bytes], object] | None) -> bytes:
    """A decoded path to be logged: without segments that look like a key, or that `known` says are one."""

    def secret(segment: bytes) -> bool:
        return segment.startswith(b"sk-") or (known is not None and known(segment) is not None)

    return b"/".join(b"***" if segment and secret(segment) else segment for segment in path.split(b"/"))
