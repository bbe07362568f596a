"""Redaction: credentials kept out of logs, viewers, URLs and header fields. Pure."""

import re
from collections.abc import Callable
from urllib.parse import unquote_plus, unquote_to_bytes

from ..http.head import Fields
from .keys import SHORT

MASKED_PATH = b"/***"
MAX_SHOWN = 1024
"""Bytes of a path that are searched for keys and shown. Clients choose how long a path is."""
_SEGMENT = re.compile(rb"[^/]+")
_PART = re.compile(rb"[\w.~+-]+=*")  # The characters of keys, and the padding of base64.
_SECRET_PARAMETERS = frozenset({"access_token", "api_key", "api-key", "apikey", "auth", "key", "token"})

type KeyLookup = Callable[[bytes], object]
"""Return the principal that a secret belongs to, or None."""


def clean_target(target: bytes, secret: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return (the request target without credentials in its query, the names of the removed parameters as `?name`).

    A parameter is removed if it is named like a credential, or holds `secret`. Raises ValueError if `secret` is in the
    path, unless it has fewer than SHORT characters and so may be a word of Ollama's API.
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
    """Return the fields that do not hold the secret. One of fewer than SHORT characters is not looked for."""
    return tuple(field for field in fields if secret not in field[1]) if len(secret) >= SHORT else fields


def is_secret(text: bytes, known: KeyLookup | None) -> bool:
    """Tell whether a text looks like a key or, by `known`, is one."""
    return text[:3].lower() == b"sk-" or (known is not None and known(text) is not None)


def mask_path(path: bytes, known: KeyLookup | None) -> bytes:
    """Return the first MAX_SHOWN bytes of a decoded path, with every part that is_secret() replaced by `***`."""

    def masked(found: re.Match[bytes]) -> bytes:
        return b"***" if is_secret(found[0], known) else found[0]

    return _PART.sub(masked, _SEGMENT.sub(masked, path[:MAX_SHOWN]))
