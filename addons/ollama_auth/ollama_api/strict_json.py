"""Read single values of a JSON object that comes in pieces, as requests do, and refuse what is not JSON (RFC 8259).

Pure, bounded in memory. Member names are compared as Go's encoding/json does. Each pattern matches whole tokens only,
so a token that is cut off matches none. Most of a document is skipped by "runs": members or items, each with its comma,
whose values nest at most _RUN_DEPTH deep.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]
from string import ascii_lowercase, ascii_uppercase

from .json_scanner import Wanted, end_of

MAX_DEPTH = 10_000
"""Open containers; Go's encoding/json takes no more."""
MAX_NAME = 16
"""Characters of the longest member name that can be wanted."""
MAX_VALUE = 64 * 1024
"""Bytes of a wanted string, as sent."""
MAX_NAMED = 4_000
"""Members, of the objects in which something is wanted, whose names have to be looked at one by one."""

_RUN_DEPTH = 4
_MAX_NUMBER = 32  # bytes of a number, its runs of digits cut to two
_MAX_RAW_NAME = 12 * MAX_NAME + 2  # a character is at most two escapes of six bytes
_WS = rb"[ \t\n\r]*+"
_PLAIN = rb'[^"\\\x00-\x1f]*+'
_CONTENT = _PLAIN + rb'(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})' + _PLAIN + rb")*+"
_WHOLE = rb'"' + _CONTENT + rb'"'
_SCALAR = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+|true|false|null"

# Names are compared as in Go: simple case folding, in which two characters beyond ASCII equal ASCII letters.
_FOLDED = str.maketrans(ascii_uppercase + "\N{LATIN SMALL LETTER LONG S}\N{KELVIN SIGN}", ascii_lowercase + "sk")


def _container(start: bytes, item: bytes, end: bytes) -> bytes:
    """A whole container of such items."""
    return rb"%s%s(?:%s%s(?:,(?!%s%s)%s|(?=%s)))*+%s" % (start, _WS, item, _WS, _WS, end, _WS, end, end)


def _member(name: bytes, depth: int) -> bytes:
    return rb"%s%s:%s%s" % (name, _WS, _WS, _value(depth))


def _value(depth: int, name: bytes = _WHOLE) -> bytes:
    """A value that nests at most so deep; the members of it have such names, but not those of what it contains."""
    scalar = rb"%s|%s" % (_WHOLE, _SCALAR)
    if not depth:
        return rb"(?:%s)" % scalar
    array = _container(rb"\[", _value(depth - 1), rb"\]")
    return rb"(?:%s|%s|%s)" % (scalar, array, _container(rb"\{", _member(name, depth - 1), rb"\}"))


def _other_than(names: Iterable[bytes]) -> bytes:
    """A member name of printable ASCII, without escapes, that is folded to none of `names`."""
    return rb'"(?!(?i:%s)")[ !#-\[\]-~]*+"' % b"|".join(map(re.escape, names))


def _run(item: bytes) -> bytes:
    run = rb"(?:%s%s,%s)*+" % (item, _WS, _WS)
    _patterns.append(run)
    return run


_patterns: list[bytes] = []


@functools.cache
def _compiled(run: bytes) -> re.Pattern[bytes]:
    """Compile it when it is first needed, which takes some 20 ms: most gates never read a body in this way."""
    return re.compile(run)


def prepare() -> None:
    """Compile all patterns, so that no request waits for it."""
    for pattern in _patterns:
        _compiled(pattern)


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of container, and what is wanted in it."""

    run: bytes
    """Pattern of items or members that are of no interest."""
    members: Mapping[str, "str | Place"] = field(default_factory=dict)
    """Of an object: folded name -> the key to report the value under, or the place of an array."""
    items: "Place | None" = None
    """Of an array: the place of the objects in it."""

    @classmethod
    def of_object(cls, wanted: Wanted) -> "Place":
        """The place of an object; names are in lower case. Containers in it are arrays of objects."""
        members = {
            name.decode(): inner if isinstance(inner, str) else cls._of_array(inner) for name, inner in wanted.items()
        }
        return cls(_run(_member(_other_than(wanted), _RUN_DEPTH)), members)

    @classmethod
    def _of_array(cls, wanted: Wanted) -> "Place":
        return cls(_run(_value(_RUN_DEPTH, _other_than(wanted))), items=cls.of_object(wanted))


_SPACE, _TEXT, _WHOLE_TEXT = re.compile(_WS), re.compile(_CONTENT), re.compile(_WHOLE)
_CUT_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?")
_NAME = re.compile(rb"(%s)%s:" % (_WHOLE, _WS))
_WORD, _WHOLE_WORD, _DIGITS = re.compile(rb"[-+.0-9A-Za-z]++"), re.compile(_SCALAR), re.compile(rb"([0-9]{2})[0-9]++")
_END_OF = {b"[": b"]", b"{": b"}"}
_WORDS = {b"true": True, b"false": False, b"null": None}

# What is of no interest and is in no run is read token by token. Such a state is what has to follow, ...
_FIRST_ITEM, _ITEM, _FIRST_MEMBER, _MEMBER, _COLON, _VALUE, _COMMA = range(7)
_RUNS = {
    **dict.fromkeys((_FIRST_ITEM, _ITEM), (_run(_value(_RUN_DEPTH)), _ITEM)),
    **dict.fromkeys((_FIRST_MEMBER, _MEMBER), (_run(_member(_WHOLE, _RUN_DEPTH)), _MEMBER)),
}
# ... and a token is the number of a group. The last one stands for a token that is cut off, or is none.
_TOKENS = re.compile(
    rb"%s(?:(\[)|(\{)|(\])|(\})|(,)|(:)|(%s)|((?:%s)(?=[ \t\n\r,\]}]))|([^ \t\n\r]))" % (_WS, _WHOLE, _SCALAR)
)
_ARRAY, _OBJECT, _ARRAY_END, _OBJECT_END, _SEPARATOR, _ASSIGNMENT, _QUOTED, _OTHER, _CUT = range(1, 10)
_OPENING = (0, *b"[{[{")
_AS_VALUE = {_ARRAY: _FIRST_ITEM, _OBJECT: _FIRST_MEMBER, _QUOTED: _COMMA, _OTHER: _COMMA}
_NONE = -1
_FOLLOWS = [
    [follows.get(token, _NONE) for token in range(_CUT + 1)]
    for follows in (
        _AS_VALUE | {_ARRAY_END: _COMMA},
        _AS_VALUE,
        {_QUOTED: _COLON, _OBJECT_END: _COMMA},
        {_QUOTED: _COLON},
        {_ASSIGNMENT: _VALUE},
        _AS_VALUE,
        {_ARRAY_END: _COMMA, _OBJECT_END: _COMMA, _SEPARATOR: _ITEM},
    )
]
"""State -> token -> the next state; after a comma, if it is in an array."""
_RUN_AGAIN = 256  # bytes that are read token by token before a run is tried again

type Reported = str | bool | None
"""A value: True stands for a number and for a container with something in it, False for an empty one as well."""


class NotJsonError(ValueError):
    """The document is not a JSON object, or not one that can be read: what is wrong with it."""


class StrictScanner:
    """Reads the wanted values of one JSON object (RFC 8259), and refuses what is none. What follows it is not read.

    Names are compared without case, as in Go. The work for a piece is bounded by its size; kept is a byte for each open
    container, and one token. Bytes that are not UTF-8 are read as U+FFFD in strings, as in Go, and refused elsewhere.
    """

    def __init__(self, place: Place, report: Callable[[str, str, Reported], None]) -> None:
        """`report` takes each wanted value in turn: the key of `place` for it, its name as sent, and the value."""
        self.closed = False
        """The object has ended."""
        self._root = place
        self._report = report
        self._state: Callable[[bytes, int], int] = self._document
        self._open = bytearray()  # the open containers: [ or {
        self._places: list[Place] = []  # of the outermost of them, as far as something is wanted in them
        self._target: str | Place | None = None  # of the value that comes next in an object
        self._name = ""  # of that value
        self._named_values = 0
        self._next = _FIRST_ITEM  # what has to follow where nothing is wanted
        self._rest = b""  # a token that has not ended
        self._in_text = False  # in a string that has not ended
        self._kept: bytearray | None = None  # the start of it, if it is wanted

    def feed(self, data: bytes) -> None:
        """Read the next piece of the document. Raises NotJsonError; nothing more may be fed then."""
        data, self._rest = self._rest + data, b""
        at = 0
        while at < len(data) and not self.closed:
            if not self._in_text:
                at = end_of(_SPACE, data, at)
            if at < len(data):
                at = self._state(data, at)

    # States: what has to follow. Each reads the bytes at an offset, and returns the offset of what it has not read.

    def _document(self, data: bytes, at: int) -> int:
        if data[at : at + 1] != b"{":
            raise NotJsonError("is not a JSON object")
        return self._enter(data, at, self._root)

    def _first_member(self, data: bytes, at: int) -> int:
        return self._leave(data, at) if data[at : at + 1] == b"}" else self._member(data, at)

    def _member(self, data: bytes, at: int) -> int:
        self._state = self._member
        if (end := end_of(_compiled(self._places[-1].run), data, at)) > at:
            return end
        if found := _NAME.match(data, at):
            self._named(found[1])
            self._state = self._value
            return found.end()
        return self._string(data, at, self._name_text, wanted=True)

    def _colon(self, data: bytes, at: int) -> int:
        if data[at : at + 1] != b":":
            raise NotJsonError("is not JSON")
        self._state = self._value
        return at + 1

    def _first_item(self, data: bytes, at: int) -> int:
        return self._leave(data, at) if data[at : at + 1] == b"]" else self._item(data, at)

    def _item(self, data: bytes, at: int) -> int:
        self._state = self._item
        if (end := end_of(_compiled(self._places[-1].run), data, at)) > at:
            return end
        self._target = self._places[-1].items
        return self._value(data, at)

    def _value(self, data: bytes, at: int) -> int:
        match data[at : at + 1]:
            case b'"':
                if found := _WHOLE_TEXT.match(data, at):
                    self._found_text(found[0])
                    return found.end()
                return self._string(data, at, self._value_text, wanted=isinstance(self._target, str))
            case b"[" | b"{":
                return self._container(data, at)
        return self._word(data, at)

    def _comma(self, data: bytes, at: int) -> int:
        if data[at : at + 1] != b",":
            return self._leave(data, at)
        self._state = self._member if self._open.endswith(b"{") else self._item
        return at + 1

    # Containers.

    def _container(self, data: bytes, at: int) -> int:
        target, opening = self._target, data[at : at + 1]
        if isinstance(target, Place):
            in_array = target is self._places[-1].items
            return self._enter(data, at, target if in_array == (opening == b"{") else None)
        if target is not None:
            first = end_of(_SPACE, data, at + 1)
            if first == len(data):  # Whether it is empty is not known yet.
                self._rest = opening
                return first
            self._report(target, self._name, data[first : first + 1] not in (b"]", b"}"))
        return self._enter(data, at, None)

    def _enter(self, data: bytes, at: int, place: Place | None) -> int:
        is_object = data[at : at + 1] == b"{"
        self._open += data[at : at + 1]
        if place:
            self._places.append(place)
            self._state = self._first_member if is_object else self._first_item
        else:
            self._next = _FIRST_MEMBER if is_object else _FIRST_ITEM
            self._state = self._skip
        return at + 1

    def _leave(self, data: bytes, at: int) -> int:
        if data[at : at + 1] != _END_OF[bytes(self._open[-1:])]:
            raise NotJsonError("is not JSON")
        del self._open[-1:], self._places[-1:]
        self.closed = not self._open
        self._state = self._comma
        return at + 1

    def _skip(self, data: bytes, at: int) -> int:
        """Read on in a container in which nothing is wanted."""
        opened, wanted_depth, following = self._open, len(self._places), self._next
        if following in _RUNS:
            run, after = _RUNS[following]
            if (end := end_of(_compiled(run), data, at)) > at:
                at, following = end, after
        again = at + _RUN_AGAIN
        for found in _TOKENS.finditer(data, at):
            token = found.lastindex or _CUT
            before, following = following, _FOLLOWS[following][token]
            if following < 0:
                if token != _CUT:
                    raise NotJsonError("is not JSON")
                self._next = before
                return self._skip_cut(data, found.start(_CUT))
            if token <= _OBJECT:
                opened.append(_OPENING[token])
                if len(opened) > MAX_DEPTH:
                    raise NotJsonError("is nested too deeply")
            elif token <= _OBJECT_END:
                if opened.pop() != _OPENING[token]:
                    raise NotJsonError("is not JSON")
                if len(opened) == wanted_depth:
                    self._state = self._comma
                    return found.end()
            elif token == _SEPARATOR:
                if opened[-1] == _OPENING[_OBJECT]:
                    following = _MEMBER
                if found.end() > again:
                    self._next = following
                    return found.end()
        self._next = following
        return len(data)

    def _skip_cut(self, data: bytes, at: int) -> int:
        """Begin to read a token that is cut off, or is none."""
        follows = _FOLLOWS[self._next]
        if data[at : at + 1] == b'"' and follows[_QUOTED] >= 0:
            self._next = follows[_QUOTED]
            return self._string(data, at, self._skip_text, wanted=False)
        if follows[_OTHER] < 0:
            raise NotJsonError("is not JSON")
        return self._word(data, at)

    # Names and values.

    def _named(self, raw: bytes | None) -> None:
        """Note the name of the value that comes next; None stands for one that can't be wanted."""
        self._target = None
        self._named_values += 1
        if self._named_values > MAX_NAMED:
            raise NotJsonError("has too many members of a kind")
        if raw and len(raw) <= _MAX_RAW_NAME:
            self._name = _unescaped(raw)
            if len(self._name) <= MAX_NAME:
                self._target = self._places[-1].members.get(self._name.translate(_FOLDED))

    def _found_text(self, raw: bytes) -> None:
        if isinstance(self._target, str):
            if len(raw) > MAX_VALUE:
                raise NotJsonError("has a value that is too long")
            self._report(self._target, self._name, _unescaped(raw))
        self._state = self._comma

    def _word(self, data: bytes, at: int) -> int:
        """Read a number or a literal."""
        found = _WORD.match(data, at)
        word = found[0] if found else b""
        if found and found.end() == len(data):
            self._rest = _DIGITS.sub(rb"\1", word)
            if len(self._rest) > _MAX_NUMBER:
                raise NotJsonError("is not JSON")
            return len(data)
        if not _WHOLE_WORD.fullmatch(word) or len(self._open) > len(self._places):
            raise NotJsonError("is not JSON")  # Where nothing is wanted, a whole word would have been a token.
        if isinstance(self._target, str):
            self._report(self._target, self._name, _WORDS.get(word, True))
        self._state = self._comma
        return at + len(word)

    # Strings that come in pieces.

    def _string(self, data: bytes, at: int, state: Callable[[bytes, int], int], *, wanted: bool) -> int:
        if data[at : at + 1] != b'"':
            raise NotJsonError("is not JSON")
        self._in_text, self._kept = True, bytearray(b'"') if wanted else None
        self._state = state
        return at + 1

    def _name_text(self, data: bytes, at: int) -> int:
        at, ended = self._text(data, at)
        if self._kept is not None and len(self._kept) > _MAX_RAW_NAME:
            self._kept = None
        if ended:
            self._named(None if self._kept is None else bytes(self._kept))
            self._state = self._colon
        return at

    def _value_text(self, data: bytes, at: int) -> int:
        at, ended = self._text(data, at)
        if self._kept is not None and len(self._kept) > MAX_VALUE:
            raise NotJsonError("has a value that is too long")
        if ended:
            self._found_text(bytes(self._kept or b""))
        return at

    def _skip_text(self, data: bytes, at: int) -> int:
        at, ended = self._text(data, at)
        if ended:
            self._state = self._skip
        return at

    def _text(self, data: bytes, at: int) -> tuple[int, bool]:
        """Read on in a string; return the offset of what follows, and whether the string has ended."""
        end = end_of(_TEXT, data, at)
        ended = data[end : end + 1] == b'"'
        self._in_text = not ended
        if self._kept is not None:
            self._kept += data[at : end + ended]
        if not ended and end < len(data):
            if not _CUT_ESCAPE.fullmatch(data, end):
                raise NotJsonError("is not JSON")
            self._rest = data[end:]
            return len(data), False
        return end + ended, ended


def _unescaped(raw: bytes) -> str:
    """The text of a whole string; one U+FFFD may stand for several bytes, of which Go makes one each."""
    return str(scanstring(raw.decode("utf-8", "replace"), 1)[0])
