"""The fields of a key: their readers, and the table of all. Pure.

A reader takes the value that TOML holds and returns the one that a Key or Principal holds, or raises FieldError. No
fault quotes a value, which may be a key that was put in the wrong place.
"""

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches

from ..errors import OllamaAuthError, command
from ..ollama_api.model_names import check_pattern
from . import weak_keys
from .keys import Principal, Scope, parse_ssh_key

MAX_NAME, MAX_NOTE = 64, 256
"""Characters of the name of a key, and of its note."""
MAX_LIMIT = 10**15 - 1
"""The greatest integer that a structured header field such as RateLimit can hold (RFC 9651 section 3.3.1)."""
RESERVED = {"default": "the key that the environment holds", "-": "a request without a key, in the log"}
"""Names that no key in a keys file can have, and what they stand for."""

_PUNCTUATION = str.maketrans("", "", "._-")
_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
_YEAR_10000 = 253_402_300_800  # In seconds since 1970, as all times here.
DIGEST_WANTED = "store the digest of a key, as `printf %s THE_KEY | sha256sum` prints it, and never the key itself"


class FieldError(OllamaAuthError, ValueError):
    """A value that can't be used; the message continues a sentence that begins with the name of the field."""


def key_name(value: object) -> str:
    """The name of a key, by which logs and limits identify its principal: letters and digits of any alphabet.

    It is normalized (NFC), since the same letter can be written in two ways.
    """
    if not isinstance(value, str):
        raise FieldError("is not text; write it in quotes")
    name = normalized(value)
    kinds = [unicodedata.category(one) for one in name.translate(_PUNCTUATION)]
    if not 1 <= len(name) <= MAX_NAME or not all(kind[0] in "LM" or kind == "Nd" for kind in kinds):
        raise FieldError(
            f"is not 1 to {MAX_NAME} letters, digits, dots, underscores and hyphens; spell it so, "
            "and put the rest into its note"
        )
    if name in RESERVED:
        raise FieldError(f"{name} stands for {RESERVED[name]}; choose another")
    if name.startswith("sk-"):
        raise FieldError(f"seems to be a key; say whom the key is for, and {DIGEST_WANTED}")
    return name


def normalized(name: str) -> str:
    """The one form of a name that may be written in several."""
    return unicodedata.normalize("NFC", name)


def _digest(value: object) -> bytes:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise FieldError(f"is not 64 hex digits in quotes; {DIGEST_WANTED}")
    if weak_keys.hash_of_common(value):
        raise FieldError(
            f"is the digest of a well-known word, or of nothing; make a key with `{command('keys')} add NAME`"
        )
    return bytes.fromhex(value)


def ssh_key(value: object) -> bytes:
    """The 32 bytes of a public key in OpenSSH's format, one line `ssh-ed25519 AAAA... comment`."""
    line = value.strip() if isinstance(value, str) else ""
    if "PRIVATE KEY" in line:
        raise FieldError("is a private key, which only its owner may have; take the file beside it that ends in .pub")
    kind, _, rest = line.partition(" ")
    if kind != "ssh-ed25519" or not rest.strip() or len(line.splitlines()) > 1:
        raise FieldError("is not one line `ssh-ed25519 AAAA... comment`; copy it from ~/.ollama/id_ed25519.pub")
    key = parse_ssh_key(rest.split()[0].encode("utf-8", "replace"))
    if key is None:
        raise FieldError("is not whole; copy the line of the public key again")
    return key


def scope(value: object) -> Scope:
    """A scope."""
    try:
        return Scope(value)  # type: ignore[arg-type]
    except ValueError:
        close = get_close_matches(value.lower()[:64], Scope, n=1) if isinstance(value, str) else []
        hint = f"did you mean {close[0]}?" if close else f"the scopes are {', '.join(Scope)}"
        raise FieldError(f"is not a valid scope; {hint}") from None


def model_pattern(value: object) -> str:
    """A pattern of model names."""
    if not isinstance(value, str):
        raise FieldError("is not text; write it in quotes")
    if fault := check_pattern(value):
        raise FieldError(fault)
    return value


def _each[T](value: object, read: Callable[[object], T]) -> list[T]:
    if not isinstance(value, list):
        raise FieldError('is not a list; write it in brackets, as in ["one", "another"]')
    if not value:
        raise FieldError("is empty; leave it out for the default, or remove the key")
    found: list[T] = []
    faults: list[str] = []
    for number, item in enumerate(value, 1):
        try:
            found.append(read(item))
        except FieldError as fault:
            faults.append(f"number {number} {fault}")
    if faults:
        raise FieldError("; ".join(faults))
    return found


def instant(value: object) -> float:
    """A time in seconds since 1970; of a date without a time, the end of that day in UTC."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise FieldError("has no time zone; write Z behind it for UTC, as in 2027-01-01T00:00:00Z")
        seconds = value.timestamp()
    elif isinstance(value, date):
        seconds = datetime.combine(value, time(), UTC).timestamp() + timedelta(days=1).total_seconds()
    else:
        raise FieldError("is not a date; write it without quotes, as in 2027-01-01T00:00:00Z or 2027-01-01")
    if not 0 <= seconds < _YEAR_10000:
        raise FieldError("is before 1970 or after 9999; correct it, or leave it out for no end")
    return seconds


def limit(value: object) -> int:
    """The amount of a limit."""
    if type(value) is not int:  # bool is an int to Python, and not to TOML.
        raise FieldError("is not a whole number; write it without quotes, as in 60")
    if not 1 <= value <= MAX_LIMIT:
        raise FieldError(f"is not from 1 to {MAX_LIMIT}; leave it out for no limit, or remove the key")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise FieldError("is neither true nor false; write one of them without quotes")
    return value


def note(value: object) -> str:
    """A note on a key."""
    if not isinstance(value, str) or len(value) > MAX_NOTE or not value.isprintable():
        raise FieldError(f"is not one line of up to {MAX_NOTE} characters; shorten it")
    return value


FIELDS: dict[str, Callable[[object], object]] = {
    "name": key_name,
    "sha256": _digest,
    "ssh_ed25519": ssh_key,
    "scopes": lambda value: frozenset(_each(value, scope)),
    "models": lambda value: tuple(_each(value, model_pattern)),
    "expires": instant,
    "requests_per_minute": limit,
    "concurrent_requests": limit,
    "tokens_per_day": limit,
    "tokens_per_month": limit,
    "disabled": _flag,
    "note": note,
    "previous_sha256": _digest,
    "previous_until": instant,
}
"""The fields of a key and their readers."""
HARMLESS = {"name", "scopes", "note"}
"""The fields without which a key may do no more."""
OF_PRINCIPAL = FIELDS.keys() & Principal.__slots__
"""Those that Principal has under the same name; the others are credentials."""
