"""Edit the text of a keys file: all but the key that changes stays as it is, with comments, order and line ends. Pure.

Needs tomlkit, which reading the file does not.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .cut_off import ANNOUNCEMENT, END
from .key_fields import FieldError, normalized

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import AoT

HEADER = (
    "# Who may use the gate: made by scripts/keys, and to be edited by hand. It holds digests of keys, never a key.\n"
    f"{ANNOUNCEMENT}\n"
)
NO_KEYS = f"{HEADER}\n{END}\n"
_ARRAY = re.compile(r"""^[ \t]*["']?keys["']?[ \t]*=""", re.MULTILINE)
_IN_AN_ARRAY = "lists its keys as keys = [...]; begin each with a line [[keys]], then try again"


def appended(text: str, entry: Mapping[str, object]) -> str:
    """Return the text with one more key at its end. Raises FieldError."""
    import tomlkit

    if _ARRAY.search(text) and "keys" in (document := tomlkit.parse(text)):
        _tables(document)
    above = text.rstrip()
    ends = not above or above.endswith(f"\n{END}")
    above = above.removesuffix(END).rstrip() or HEADER.rstrip()
    after = f"{above}\n\n{tomlkit.dumps({'keys': [entry]}).rstrip()}\n"
    return _line_ends(text, with_end(after) if ends else after)


def with_end(text: str) -> str:
    """Return the text with END as its last line."""
    return f"{text.rstrip()}\n\n{END}\n"


def without(text: str, name: str) -> str:
    """Return the text without one key. The comments above and below it stay. Raises FieldError."""
    from tomlkit.items import Whitespace

    document, keys, index = _find(text, name)
    tail = _cut_tail(keys[index])
    del keys[index]
    body = keys[index - 1].value.body if index else document.body
    end = len(body) if index else next(place for place, (key, _) in enumerate(body) if key)
    if end and tail and all(isinstance(item, Whitespace) for _, item in (body[end - 1], tail[0])):
        del tail[0]  # One blank line is enough.
    if not keys:
        del body[end]  # It would be written as keys = [], below which no key can be added.
    body[end:end] = tail
    after = document.as_string()
    return _line_ends(text, after if after.strip() else NO_KEYS)


def updated(text: str, name: str, changes: Mapping[str, object]) -> str:
    """Return the text with other values for fields of one key; None removes a field. Raises FieldError."""
    document, keys, index = _find(text, name)
    tail = _cut_tail(keys[index])
    for field, value in changes.items():
        if value is not None:
            keys[index][field] = value
        elif field in keys[index]:
            del keys[index][field]
    keys[index].value.body.extend(tail)
    return _line_ends(text, document.as_string())


def _find(text: str, name: str) -> "tuple[TOMLDocument, AoT, int]":
    """Return (the document, its keys, the index of the key of that name)."""
    import tomlkit

    document = tomlkit.parse(text)
    keys = _tables(document)
    names = [normalized(str(key["name"])) for key in keys]
    return document, keys, names.index(normalized(name))


def _tables(document: "TOMLDocument") -> "AoT":
    from tomlkit.items import AoT

    keys = document["keys"]
    if not isinstance(keys, AoT):
        raise FieldError(_IN_AN_ARRAY)
    return keys


def _cut_tail(table: Any) -> list[Any]:
    """Remove and return the comments and blank lines at the end of a key.

    To tomlkit they belong to this key; to a person they introduce the next one.
    """
    body = table.value.body
    end = max(place for place, (key, _) in enumerate(body) if key) + 1
    tail: list[Any] = body[end:]
    del body[end:]
    return tail


def _line_ends(before: str, after: str) -> str:
    """Return the text after a change with the line ends of the one before; lines that changed end as its first one."""
    if "\r\n" not in before:
        return after
    old, new = before.split("\n"), after.replace("\r\n", "\n").split("\n")
    bare = [line.removesuffix("\r") for line in old]
    most = min(len(old), len(new))
    # The last line of the old text may have no end.
    head = next((place for place in range(most - 1) if bare[place] != new[place]), most - 1)
    tail = next((back for back in range(most - head) if bare[-1 - back] != new[-1 - back]), most - head)
    end = "\r" if old[0].endswith("\r") else ""
    lines = [*old[:head], *(line + end for line in new[head : len(new) - tail]), *old[len(old) - tail :]]
    return "\n".join([*lines[:-1], lines[-1].removesuffix("\r")])
