"""Read single values of a JSON object that comes in pieces, as answers do. Pure, bounded in memory.

`Scanner` follows strings, escapes and nesting, so a value is found by its place and by nothing else: text in a string
is never mistaken for a member. Strings and containers that are not wanted are skipped as they come, whatever their
size. It checks no grammar: input that is not JSON yields some values or none, and never an error. Requests are read by
strict_json.py.
"""

import re
from collections.abc import Mapping

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

MAX_TOKEN = 1024
"""Bytes of a member name or value that are kept; a longer value is reported as b""."""

type Wanted = Mapping[bytes, str | Wanted]
"""The members to read: name -> the key to report its value under, or, where the value is an object or an array of
objects, the members to read of those; b"" is a value that is neither."""
TEXT = "text"
"""The key of what is not reported but counted: strings, and containers of them."""

_LONG = 1024
"""Bytes without strings and objects that are worth another way to skip them."""
_TOO_LONG = b""
# Possessive throughout: nothing is tried in two ways. An unwanted container is skipped in one step where all of it is
# there and it is not deeper than an array of objects of arrays; otherwise bracket by bracket.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_INSIDE = rb'[^"{}\[\]]++|' + _STRING
_FLAT = rb"[{\[](?:" + _INSIDE + rb")*+[}\]]"
_SMALL = rb"[{\[](?:" + _INSIDE + rb"|" + _FLAT + rb")*+[}\]]"
_SEPARATORS = re.compile(rb"[\s,:]*+")
_TOKEN = re.compile(rb"[\s,:]*+(?:([{\[])|([}\]])|(" + _STRING + rb'|[^\s,:"{}\[\]]++(?=[\s,:"{}\[\]])))', re.DOTALL)
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_IN_CONTAINER = re.compile(rb"(?:" + _INSIDE + rb"|" + _SMALL + rb")*+", re.DOTALL)


class Scanner:
    """Reads the wanted values of one JSON object. Of two members of one name the last counts, as in Go."""

    def __init__(self, wanted: Wanted) -> None:
        self.found: dict[str, bytes] = {}
        """The values read so far, as sent: strings with their quotes, numbers, `true`, `false`, `null`."""
        self.closed = False
        """The object has ended; what follows it is not read."""
        self.text = 0
        """Bytes of the values that are wanted as TEXT."""
        self.quotes = 0
        """Quotes that begin and end the strings in these."""
        # Open containers: (members wanted in it, whether it is an object). The first one stands for the document.
        self._open: list[tuple[Wanted, bool]] = [(wanted, False)]
        self._name: bytes | None = None  # of the member whose value comes next
        self._rest = b""  # a token that has not ended
        self._skipped = 0  # depth of open containers that are not wanted
        self._in_string = False  # inside a string that is not wanted, or too long
        self._counts = False  # what is skipped is wanted as TEXT

    def feed(self, data: bytes) -> None:
        """Read the next piece of the document."""
        data, self._rest = self._rest + data, b""
        at = 0
        while at < len(data) and not self.closed:
            if self._in_string:
                at = self._string(data, at)
            elif self._skipped:
                at = self._container(data, at)
            else:
                at = self._token(data, at)

    def _string(self, data: bytes, at: int) -> int:
        """Skip to the end of a string."""
        end = end_of(_IN_STRING, data, at)
        if self._counts:
            self._count(data, at, end + 1)
        if data[end : end + 1] == b'"':
            self._in_string = False
        else:
            self._rest = data[end:]  # nothing, or a backslash whose other half is to come
        return end + 1

    def _container(self, data: bytes, at: int) -> int:
        """Skip to the end of an unwanted container, or to the start of an inner one whose end is yet to come."""
        if not self._counts:
            at = self._skip_numbers(data, at)
        end = end_of(_IN_CONTAINER, data, at)
        if self._counts:
            self._count(data, at, end + 1)
        match data[end : end + 1]:
            case b'"':
                self._in_string = True
            case b"{" | b"[":
                self._skipped += 1
            case b"}" | b"]":
                self._skipped -= 1
                self.closed = self._skipped == 0 and len(self._open) == 1
        return end + 1

    def _skip_numbers(self, data: bytes, at: int) -> int:
        """Skip long arrays of numbers, as embeddings are, which takes a tenth of the time. Return the new position."""
        end = len(data)
        for other in (b'"', b"{", b"}"):
            if (found := data.find(other, at, end)) >= 0:
                end = found
            if end - at < _LONG:
                return at
        opening, closing = data.find(b"[", at, end), data.find(b"]", at, end)
        for _ in range((end - at) // _LONG):
            if opening < 0 and closing < 0:
                return end
            if closing < 0 or 0 <= opening < closing:
                self._skipped += 1
                at, opening = opening + 1, data.find(b"[", opening + 1, end)
            elif self._skipped > 1:
                self._skipped -= 1
                at, closing = closing + 1, data.find(b"]", closing + 1, end)
            else:
                break
        return at

    def _count(self, data: bytes, at: int, end: int) -> None:
        self.text += min(end, len(data)) - at
        self.quotes += data.count(b'"', at, end)

    def _token(self, data: bytes, at: int) -> int:
        """Read a bracket, a name or a value."""
        self._counts = False
        found = _TOKEN.match(data, at)
        if not found:
            return self._unfinished(data, end_of(_SEPARATORS, data, at))
        opening, _, scalar = found.groups()
        if scalar:
            self._scalar(scalar)
        elif opening:
            self._enter(opening == b"{")
        else:
            self._leave()
        return found.end()

    def _unfinished(self, data: bytes, at: int) -> int:
        """Keep a token that has not ended, within the bound."""
        self._rest = data[at : at + MAX_TOKEN + 1]  # one more than is kept, so that it is found to be too long
        if self._rest.startswith(b'"') and len(self._rest) > MAX_TOKEN:
            self._rest, self._in_string = b"", True
            self._counts = self._scalar(b'"')
            return at + 1
        return len(data)

    def _enter(self, is_object: bool) -> None:
        wanted, in_object = self._open[-1]
        inner = wanted.get(self._name or b"") if in_object else wanted
        self._name = None
        # An array in an array is skipped, so never more containers are open than `wanted` is deep.
        if isinstance(inner, Mapping) and (in_object or is_object):
            self._open.append((inner, is_object))
        else:
            self._skipped = 1
            self._counts = inner == TEXT

    def _leave(self) -> None:
        if len(self._open) > 1:
            self._open.pop()
        self._name = None
        self.closed = len(self._open) == 1

    def _scalar(self, token: bytes) -> bool:
        """Read a name or a value, or a quote that begins a long string; return whether it is wanted as TEXT."""
        wanted, in_object = self._open[-1]
        if not in_object:
            return False
        if self._name is None:
            self._name = token[1:-1]
            return False
        name = wanted.get(self._name)
        self._name = None
        if isinstance(name, Mapping):
            name = name.get(b"")
        if name == TEXT and token.startswith(b'"'):
            self._count(token, 0, len(token))
            return True
        if isinstance(name, str):
            self.found[name] = token if len(token) <= MAX_TOKEN and token != b'"' else _TOO_LONG
        return False


def end_of(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """The offset at which that pattern, which always matches, stops."""
    found = pattern.match(data, at)
    return found.end() if found else at
