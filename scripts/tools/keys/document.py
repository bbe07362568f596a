"""Edits of the text of a keys file: all but the one key that changes stays as it is, with comments and order."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ollama_auth.auth.keys_file import ANNOUNCEMENT, END

from ..terminal import ToolError

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import AoT, Table

HEADER = (
    "# Who may use the gate: made by scripts/keys, and to be edited by hand. It holds digests of keys, never a key.\n"
    f"{ANNOUNCEMENT}\n"
)


def appended(text: str, entry: Mapping[str, object]) -> str:
    """The text with one more key at its end."""
    import tomlkit

    above = text.rstrip()
    ends = not above or above.endswith(f"\n{END}")
    above = above.removesuffix(END).rstrip() or HEADER.rstrip()
    return f"{above}\n\n{tomlkit.dumps({'keys': [entry]}).rstrip()}\n" + (f"\n{END}\n" if ends else "")


def without(text: str, name: str) -> str:
    """The text without one key. The comments above and below it stay."""
    from tomlkit.items import Whitespace

    document, keys, index = find(text, name)
    tail = cut_tail(keys[index])
    del keys[index]
    body = keys[index - 1].value.body if index else document.body
    end = len(body) if index else next(place for place, (key, _) in enumerate(body) if key)
    if end and tail and all(isinstance(item, Whitespace) for _, item in (body[end - 1], tail[0])):
        del tail[0]  # One blank line is enough.
    if not keys:
        del body[end]  # It would be written as keys = [], below which no key can be added.
    body[end:end] = tail
    after = document.as_string()
    return after if after.strip() else f"{HEADER}\n{END}\n"


def updated(text: str, name: str, update: Callable[["Table"], None]) -> str:
    """The text with one key changed by `update`, in place."""
    document, keys, index = find(text, name)
    tail = cut_tail(keys[index])
    update(keys[index])
    keys[index].value.body.extend(tail)
    return document.as_string()


def find(text: str, name: str) -> "tuple[TOMLDocument, AoT, int]":
    """(document, its keys, the index of the key of that name). Raises ToolError."""
    import tomlkit
    from tomlkit.items import AoT

    document = tomlkit.parse(text)
    keys = document["keys"]
    if not isinstance(keys, AoT):
        raise ToolError("the file lists its keys as keys = [...]: begin each with a line [[keys]], then try again")
    return document, keys, next(index for index, key in enumerate(keys) if key["name"] == name)


def cut_tail(table: "Table") -> list[Any]:
    """Remove and return the comments and blank lines at the end of a key.

    To tomlkit they belong to this key; to a person they introduce the next one.
    """
    body = table.value.body
    end = max(place for place, (key, _) in enumerate(body) if key) + 1
    tail = body[end:]
    del body[end:]
    return tail
