"""The fields of a key: the functions that read and show each, the table of all, and what may be told of a key.

No fault quotes a value, which may be a key that was put in the wrong place.
"""

import re
import tomllib
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from typing import Any, NamedTuple

from .. import clock
from ..errors import OllamaAuthError, command
from ..ollama_api.model_names import check_pattern
from ..units import parse_duration
from . import weak_keys
from .keys import KeyRing, Principal, Scope, parse_ssh_key

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
    try:
        return Scope(value)  # type: ignore[arg-type, call-arg]
    except ValueError:
        close = get_close_matches(value.lower()[:64], Scope, n=1) if isinstance(value, str) else []
        hint = f"did you mean {close[0]}?" if close else f"the scopes are {', '.join(Scope)}"
        raise FieldError(f"is not a valid scope; {hint}") from None


def _in_order(scopes: frozenset[Scope]) -> list[Scope]:
    return [scope for scope in Scope if scope in scopes]


def model_pattern(value: object) -> str:
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


def time_of(seconds: float | None) -> str | None:
    """Seconds since 1970 in RFC 3339."""
    return None if seconds is None else clock.utc(seconds, "seconds")


def expiry(text: str) -> object:
    """A TOML date or date and time, or a span from now such as `"30d"` -> a value for the file. Raises FieldError."""
    value: object = None
    if (span := parse_duration(text)) is not None:
        value = in_future(span)
    elif text.isprintable():
        with suppress(ValueError):
            value = tomllib.loads(f"value = {text}")["value"]
    if not isinstance(value, date):
        raise FieldError("is not a time; write it as in 30d, 2027-01-01 or 2027-01-01T00:00:00Z")
    if instant(value) <= clock.wall():
        raise FieldError("is over already; name a time to come")
    return value


def in_future(span: timedelta) -> datetime:
    """The time in so long, to the second. Raises FieldError."""
    try:
        return (datetime.fromtimestamp(clock.wall(), UTC) + span).replace(microsecond=0)
    except OverflowError:
        raise FieldError("is after the year 9999; name a nearer time") from None


def limit(value: object) -> int:
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
    if not isinstance(value, str) or len(value) > MAX_NOTE or not value.isprintable():
        raise FieldError(f"is not one line of up to {MAX_NOTE} characters; shorten it")
    return value


# The table.


class Option(NamedTuple):
    """An option of scripts/keys, and an input in the console's form: the name and the metavar of the option, what it
    sets, and what holds without it."""

    name: str
    value: str
    meaning: str
    default: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """All that is known of a field of a key."""

    name: str
    read: Callable[[object], object]
    """Takes the value that TOML holds, and returns the one that Principal or Key holds. Raises FieldError."""
    many: Callable[[list[Any]], object] | None = None
    """For a list: `read` takes each item, and this all together."""
    short: Callable[[str], object] | None = None
    """Takes what people may write instead, and returns the value for the file. Raises FieldError."""
    show: Callable[[Any], object] = lambda value: value
    """Takes the value of Principal, and returns the one for JSON."""
    credential: bool = False
    """It is a field of Key: never shown, and not edited. All others are fields of Principal with the same name."""
    harmless: bool = False
    """A key without it may do no more. To lose any other one makes a file suspect (cut_off.py)."""
    unit: str = ""
    """For a limit: what stands behind its number."""
    choices: Mapping[str, str] | None = None
    """What the items of a list may be, with what each means."""
    column: bool = False
    """Tables of keys have a column for it, or a word at its name. All others are listed in the column of the limits."""
    option: Option | None = None

    def parse(self, value: object) -> object:
        """Read the whole value that TOML holds. Raises FieldError."""
        return self.read(value) if self.many is None else self.many(_each(value, self.read))

    def of(self, who: Principal) -> Any:
        """The value that a principal has."""
        return getattr(who, self.name)


def _limit(name: str, option: str, meaning: str, unit: str) -> Field:
    return Field(name, limit, unit=unit, option=Option(option, "N", meaning, "no limit"))


_SCOPE = Option("scope", "S", "what it may do", "infer embed list")
_MODEL = Option("model", "M", "which it may use, with * for any characters", "all")
_EXPIRES = Option("expires", "WHEN", "30d, 2027-01-01 (the end of that day in UTC) or 2027-01-01T00:00:00Z", "never")
_SCOPES = {one.value: one.meaning for one in Scope}
ROWS = (
    Field("name", key_name, harmless=True, column=True),
    Field("sha256", _digest, credential=True),
    Field("ssh_ed25519", ssh_key, credential=True),
    # Without scopes a key has DEFAULT_SCOPES: cut_off.py compares them itself.
    Field("scopes", scope, many=frozenset, choices=_SCOPES, show=_in_order, harmless=True, column=True, option=_SCOPE),
    Field("models", model_pattern, many=tuple, column=True, option=_MODEL),
    Field("expires", instant, short=expiry, show=time_of, column=True, option=_EXPIRES),
    _limit("requests_per_minute", "rpm", "requests a minute", "/min"),
    _limit("concurrent_requests", "concurrent", "requests at once", " at once"),
    _limit("tokens_per_day", "tokens-per-day", "tokens a day", " tokens/day"),
    _limit("tokens_per_month", "tokens-per-month", "tokens a month", " tokens/month"),
    Field("disabled", _flag, column=True),
    Field("note", note, harmless=True, column=True, option=Option("note", "TEXT", "whose it is, for people to read")),
    Field("previous_sha256", _digest, credential=True),
    Field("previous_until", instant, credential=True),
)
FIELDS = {field.name: field for field in ROWS}
CREDENTIALS = {field.name for field in ROWS if field.credential}
OF_PRINCIPAL = [field for field in ROWS if not field.credential]
LIMITS = [field for field in ROWS if field.unit]


def describe(who: Principal, ring: KeyRing) -> dict[str, Any]:
    """What may be told of a principal and its keys, for JSON: nothing secret."""
    keys, now = ring.keys_of(who.name), clock.wall()
    kind = "ssh" if any(key.ssh_ed25519 for key in keys) else "key"
    return {
        "name": who.name,
        "kind": "environment" if who.name in RESERVED else kind,
        **{field.name: field.show(field.of(who)) for field in OF_PRINCIPAL},
        "expired": who.expires is not None and who.expires <= now,
        "old_key_until": time_of(next((key.until for key in keys if key.until and key.until > now), None)),
    }
