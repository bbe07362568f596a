"""Whether a keys file is whole. Pure.

TOML has no end: of a file that was cut off (by a full disk, or by an editor that stalls) the last key may have lost
its restrictions. So a file may announce its last line, and without it is a fault; and a change that takes a restriction
from the last key of a file without that line is a fault, too.
"""

from .key_fields import OF_PRINCIPAL, Field, FieldError
from .keys import DEFAULT_SCOPES, Key, KeyRing, Principal, Scope

END = "# end of the keys"
"""The last line of a file that is whole."""
ANNOUNCEMENT = f'# It is whole if its last line is "{END}".'
"""A line at the beginning of a file that has to end with END."""

_DAY = 24 * 60 * 60
_RESTRICTIONS = [field for field in OF_PRINCIPAL if not field.harmless]


def has_end(data: bytes) -> bool:
    """Whether the last line that is not blank is END."""
    return data.rstrip().endswith(b"\n" + END.encode())


def check_end(data: bytes) -> None:
    """Refuse a file that announces its last line and does not have it. Raises FieldError."""
    if ANNOUNCEMENT.encode() in data and not has_end(data):
        raise FieldError(
            f"is cut off, or has keys below its end: its last line is not `{END}`, which its first lines announce; "
            "write it again, or move that line to the end"
        )


def lost_fields(before: KeyRing, key: Key) -> list[str]:
    """The fields that may have been cut off a key: those that restricted it before, and do so no more.

    None if any that is left was changed: a person did that.
    """
    after = key.principal
    old = before.principals.get(after.name)
    if old is None:
        return []
    lost: list[str] = []
    for field in _RESTRICTIONS:
        one, other = _restriction(field, old), _restriction(field, after)
        if one != other and other is not None and not _is_part(one, other):
            return []
        if one is not None and (other is None or (isinstance(other, float) and one != other)):
            lost.append(field.name)
    if after.scopes not in (old.scopes, DEFAULT_SCOPES):
        return []
    if not after.scopes <= old.scopes and Scope.ALL not in old.scopes:
        lost.append("scopes")
    until = before.until(key)
    return [*lost, "previous_until"] if until != key.until and _is_part(until, key.until) else lost


def _is_part(whole: object, part: object) -> bool:
    """Whether a value may be what a cut left: of a number its first digits, of a time its date, which ends later."""
    if isinstance(whole, float) and isinstance(part, float):
        return whole < part <= whole + _DAY
    return isinstance(whole, int) and str(whole).startswith(str(part))


def _restriction(field: Field, principal: Principal) -> object:
    """The value that restricts a principal, or None. Not to be disabled is no restriction."""
    return None if (value := field.of(principal)) is False else value
