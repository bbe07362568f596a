"""Redaction: credentials kept out of logs, viewers, URLs and header fields. Pure.

Of the keys in a keys file only digests are known, so a key can't be searched for in a long text: each part of the text,
of any length, would have to be hashed. A text from a client is therefore shown if it consists of words that are known
here, or is too short to hold a key, or is so short that every part of it is looked up.
"""

import re
from collections.abc import Callable
from urllib.parse import unquote_plus, unquote_to_bytes

from ..http.head import Fields
from ..ollama_api.routes import PATH_WORDS
from .keys import SHORT

MASK = b"***"
MASKED_PATH = b"/" + MASK
MAX_SHOWN = 1024
"""Bytes of a path that are looked at and shown. Clients choose how long a path is."""
MAX_SEARCHED = 40
"""Bytes of a text in which every part is looked up: at most 325 digests."""
_MASKS = re.compile(rb"\*\*\*(?:/\*\*\*)+")
_LOOKS_LIKE_A_KEY = re.compile(rb"(?<![0-9a-z])sk-", re.IGNORECASE)
_WORD = re.compile(rb"[!-~]{%d,}|[^ -~]+" % SHORT)  # What is long enough to be a key, or is no text.
_SECRET_PARAMETERS = frozenset({"access_token", "api_key", "api-key", "apikey", "auth", "key", "token"})
_LONG_VALUES = frozenset({b"application/json", b"application/x-ndjson", b"text/event-stream"})
_LONG_NAMES = frozenset({
    "access-control-request-headers", "access-control-request-method", "content-disposition", "content-encoding",
    "anthropic-dangerous-direct-browser-access", "anthropic-version", "openai-organization", "proxy-authorization",
    "if-modified-since", "proxy-connection", "transfer-encoding", "upgrade-insecure-requests",
    "x-http-method-override", "x-original-forwarded-for", "x-requested-with",
})  # fmt: skip
"""Common names of header fields that are as long as keys."""
_LONG_PREFIXES = re.compile(r"sec-(?:ch-ua|fetch)-|x-(?:amzn|envoy|forwarded|openwebui|stainless)-|cf-")

type KeyLookup = Callable[[bytes], object]
"""Whether a text is a key: KeyRing.holds."""


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


def may_hold_key(text: bytes, known: KeyLookup) -> bool:
    """Tell whether a key stands anywhere in a text, or may: the text is too long to search, or looks like a key.

    A key of fewer than SHORT characters is found if it is the whole text.
    """
    if len(text) > MAX_SEARCHED or _LOOKS_LIKE_A_KEY.search(text) or known(text):
        return True
    ends = range(SHORT, len(text) + 1)
    return any(known(text[start:end]) for end in ends for start in range(end - SHORT + 1))


def mask_path(path: bytes, known: KeyLookup, searched: int = SHORT - 1) -> bytes:
    """Return a decoded path as it is if it has at most `searched` bytes and no key is in it.

    Else `***` stands for all that is no word of Ollama's API. For a stranger nothing longer is searched than what is
    too short to hold a key of SHORT characters.
    """
    segments = path[:MAX_SHOWN].split(b"/")
    masked = _MASKS.sub(MASK, b"/".join(part if part in PATH_WORDS else MASK for part in segments))
    if masked == path or len(path) > searched or may_hold_key(path, known) or any(map(known, segments)):
        return masked
    return path


def mask_value(value: bytes) -> bytes:
    """Return the value of a header field with `***` for each word that is long enough to be a key."""
    return _WORD.sub(lambda found: found[0] if found[0] in _LONG_VALUES else MASK, value)


def mask_name(name: bytes) -> str:
    """Return the name of a header field in lower case; `***` if it is long enough to be a key and not a common one."""
    lower = name.lower().decode("ascii", "replace")
    rest = _LONG_PREFIXES.sub("", lower, count=1) if _LONG_PREFIXES.match(lower) else lower
    shown = lower in _LONG_NAMES or (len(rest) < SHORT and not _LOOKS_LIKE_A_KEY.search(name))
    return lower if shown else MASK.decode()


def mask_model(name: str, secret: bytes) -> str:
    """Return the name of a model; `***` if it holds the key that came with it, or looks like a key."""
    text, secret = name.encode("utf-8", "replace").lower(), secret.lower()  # Names of models have no case.
    hidden = _LOOKS_LIKE_A_KEY.search(text) or (len(secret) >= SHORT and secret in text) or secret == text
    return MASK.decode() if hidden else name
