"""The models that a request asks Ollama to use, read from its body as Ollama reads it, while it comes. Pure.

The body that is inspected is the one that goes upstream, so a body that two readers could take differently is refused,
never repaired. Ollama's handlers decode the first JSON value with Go's encoding/json and ignore the rest (seen in 0.33;
where an older version reads less than that, this only refuses more). All readers raise BodyError, at the end at the
latest.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote_to_bytes

from ..errors import RefusedError
from .json_scanner import Wanted
from .model_names import WHITE_SPACE, canonical, is_cloud, reference
from .strict_json import NotJsonError, Place, Reported, StrictScanner

MAX_MARKS = 2_000_000
"""Brackets, braces, quotes, colons and commas in a JSON body: far more than real requests have. A body with more would
take seconds to read, so it is refused."""
MAX_PARTS = 100
"""Parts of a multipart form."""
MAX_PART_HEAD = 16 * 1024
"""Bytes of the header of a part, or of the name of a model in one."""


class BodyError(RefusedError):
    """A body that can't be inspected; the message for the client quotes none of it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__("malformed body", status, message)


@dataclass(frozen=True, slots=True)
class Asked:
    """The models that a request uses (canonical names), whether it may pull one of them, and whether it may search the
    web with the operator's account at ollama.com."""

    names: tuple[str, ...] = ()
    pulls: bool = False
    searches: bool = False


class BodyReader(Protocol):
    """Reads what a request asks for from its decoded body, piece by piece. The work for a piece is bounded by its size.

    `finish` raises BodyError for what could not be read, also where Ollama would refuse a name.
    """

    def feed(self, data: bytes) -> None: ...
    def finish(self) -> Asked: ...


type ModelReader = Callable[[bytes, bytes, bytes], BodyReader]
"""Returns the reader of a request's body from its decoded path, its query and its Content-Type. Raises BodyError."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A model's name in a JSON body: the first of these members that is not empty, and how Ollama reads the name."""

    keys: tuple[str, ...]
    canonical: Callable[[str], str | None] = reference
    required: bool = True


class JsonModels:
    """Models named in members of a JSON object."""

    def __init__(self, *members: _Member, searches: bool = False, creates: bool = False) -> None:
        """`searches`: the request may have `tools` that make Ollama itself search the web.

        `creates`: it makes a model from another one, which Ollama pulls if it is missing.
        """
        self.members, self.searches, self.creates = members, searches, creates
        keys = [key for member in members for key in member.keys] + [*(_OTHER_SOURCES if creates else ())]
        wanted: dict[bytes, str | Wanted] = {key.encode(): key for key in keys}
        if searches:
            wanted[b"tools"] = {b"type": _TOOL_TYPE}
        self.place = Place.of_object(wanted)

    def __call__(self, path: bytes, query: bytes, content_type: bytes) -> "_JsonReader":
        return _JsonReader(self)


@dataclass(slots=True)
class _Values:
    """What one member of a JSON object was set to, over all names that are folded to its own."""

    text: str = ""
    """What Go decodes into a string field: the last string."""
    other: bool = False
    """It had a value that is neither a string nor null."""
    filled: bool = False
    """It had a value that is not empty: neither null, "", false, [] nor {}."""
    exact: Reported = None
    """The last value under the name in exactly these letters."""


class _JsonReader:
    def __init__(self, models: JsonModels) -> None:
        self._models = models
        self._values: dict[str, _Values] = {}
        self._searches = False
        self._marks = 0
        self._error: BodyError | None = None
        self._scanner = StrictScanner(models.place, self._found)

    def feed(self, data: bytes) -> None:
        self._marks += sum(map(data.count, (b"[", b"{", b'"', b":", b",")))
        if self._error or self._marks > MAX_MARKS:
            return
        try:
            self._scanner.feed(data)
        except NotJsonError as error:
            self._error = BodyError(400, f"the request body {error}")

    def _found(self, key: str, name: str, value: Reported) -> None:
        """Take a value from the scanner."""
        if key == _TOOL_TYPE:
            self._searches |= isinstance(value, str) and value.strip(WHITE_SPACE).startswith("web_search")
            return
        values = self._values.setdefault(key, _Values())
        if name == key:
            values.exact = value
        values.filled |= bool(value)
        if isinstance(value, str):
            values.text = value
        elif value is not None:
            values.other = True

    def finish(self) -> Asked:
        if self._marks > MAX_MARKS:
            raise BodyError(413, "the request body is too intricate to be inspected")
        if self._error:
            raise self._error
        if not self._scanner.closed:
            raise BodyError(400, "the request body is not JSON")
        return self._asked()

    def _asked(self) -> Asked:
        models, names = self._models, []
        for member in models.members:
            text = next(filter(None, [self._text(key) for key in member.keys]), "")
            if text:
                names.append(_named(text, member.canonical))
            elif member.required:
                raise BodyError(400, f"the request body has no `{member.keys[0]}`")
        # /v1 looks for a cloud model first, in a map: under the last key `model` in exactly these letters.
        exact = self._values.get("model", _NO_VALUES).exact
        if isinstance(exact, str) and is_cloud(exact) and (name := reference(exact)):
            names.append(name)
        if models.creates and any(self._values.get(key, _NO_VALUES).filled for key in _OTHER_SOURCES):
            raise BodyError(400, "modelfile, path and remote_host are not taken here: name the model in `from`")
        pulls = models.creates and bool(self._text("from"))
        return Asked(tuple(dict.fromkeys(names)), pulls=pulls, searches=self._searches)

    def _text(self, key: str) -> str:
        """The value that Go decodes into a string field. Raises BodyError for other types."""
        values = self._values.get(key, _NO_VALUES)
        if values.other:
            raise BodyError(400, f"`{key}` in the request body is not a string")
        return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", values.text)


def in_form(path: bytes, query: bytes, content_type: bytes) -> "_FormReader":
    """Read the one field `model` of a multipart form. Go's FormValue prefers a parameter of the query to it."""
    for parameter in re.split(b"[&;]", query):
        if unquote_to_bytes(parameter.partition(b"=")[0].replace(b"+", b" ")) == b"model":
            raise BodyError(400, "the model belongs in the form, not in the query")
    form = _FORM.fullmatch(content_type)
    if not form:
        raise BodyError(400, "the Content-Type is not multipart/form-data with a boundary")
    return _FormReader(form[1] or form[2])


@dataclass(frozen=True, slots=True)
class Fixed:
    """What a request asks for, whatever its body is."""

    asked: Asked = field(default_factory=Asked)

    def feed(self, data: bytes) -> None:
        pass

    def finish(self) -> Asked:
        return self.asked


def in_path(path: bytes, query: bytes, content_type: bytes) -> Fixed:
    """Read the model named in the last segment of the path."""
    return Fixed(Asked((_named(path.rpartition(b"/")[2].decode("utf-8", "replace")),)))


# What else may say what a new model is made of: a Modelfile and a path in older versions, and another server.
_OTHER_SOURCES = ("modelfile", "path", "remote_host")
_TOOL_TYPE = "type of a tool"
_NO_VALUES = _Values()

MODEL: ModelReader = JsonModels(_Member(("model",)))
MODEL_AND_TOOLS: ModelReader = JsonModels(_Member(("model",)), searches=True)
MODEL_OR_NAME: ModelReader = JsonModels(_Member(("model", "name")))
# These three take a name literally: m:local is the tag `local` there.
PUSHED: ModelReader = JsonModels(_Member(("model", "name"), canonical))
CREATED: ModelReader = JsonModels(
    _Member(("model", "name"), canonical), _Member(("from",), required=False), creates=True
)
COPIED: ModelReader = JsonModels(_Member(("source",), canonical), _Member(("destination",), canonical))


def _named(text: str, canonical: Callable[[str], str | None] = reference) -> str:
    name = canonical(text)
    if name is None:
        raise BodyError(400, "the name of the model is not a valid one")
    return name


# How a strict reader of JSON differs from Go's encoding/json, and what is done about it:
# - Bytes that are not UTF-8 are an error, and U+FFFD in the strings of Go, and here. No valid name of a model has that
#   in it, and no name of a member that is looked for. A byte order mark is refused, as in Go.
# - Of equal names, also as Go folds them, the last one counts, but null leaves the field as it was.
# - Anything after the first value is ignored.
# - Lone surrogates are kept, and U+FFFD in Go: neither is valid in a name, but logs can't be written with the first.


def reject_constant(_: str) -> None:
    """Refuse NaN, Infinity and -Infinity. Raises ValueError."""
    raise ValueError("JSON has no such number")


_SURROGATE = re.compile("[\ud800-\udfff]")


# multipart/form-data (RFC 7578), narrower than Go's mime/multipart: each line ends in CRLF, nothing stands before,
# between or after the parts, no part is encoded, and no name has an escape in it.

_FORM = re.compile(
    rb"""(?i:multipart/form-data)[ \t]*;[ \t]*boundary=(?:([0-9A-Za-z'+_.-]{1,70})|"([0-9A-Za-z'()+_,./:=?-]{1,70})")"""
)
_TEXT = rb"""(?:"([^"\\\r\n\0]*)"|([!#$%&'*+.^_`|~0-9A-Za-z-]+))"""
_DISPOSITION = re.compile(
    rb"(?i:content-disposition):[ \t]*form-data;[ \t]*name=%s(;[ \t]*filename=%s)?(;[ \t]*filename\*=[!-:<-~]+)?[ \t]*"
    % (_TEXT, _TEXT)
)
_OTHER_HEADER = re.compile(rb"(?i:content-(?:type|length):[^\r\n\0]*|content-transfer-encoding: *(?:[78]bit|binary) *)")
_ODD_FORM = "the request body is not a plain multipart/form-data form"


class _FormReader:
    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"--" + boundary
        self._rest = b""  # what may be the start of a delimiter
        self._part: _Part | None = None
        self._count = 0
        self._models: list[bytes | None] = []
        self._error: BodyError | None = None

    def feed(self, data: bytes) -> None:
        if self._error:
            return
        try:
            *parts, rest = (self._rest + data).split(self._delimiter)
            for part in parts:
                self._add(part)
                self._end_part()
            keep = max(0, len(rest) - len(self._delimiter) + 1)
            self._add(rest[:keep])
            self._rest = rest[keep:]
        except BodyError as error:
            self._error = error

    def _add(self, data: bytes) -> None:
        if self._part:
            self._part.add(data)
        elif data:
            raise BodyError(400, _ODD_FORM)

    def _end_part(self) -> None:
        if self._part and self._part.end() == b"model":
            self._models.append(None if self._part.is_file else bytes(self._part.text[:-2]))
        self._count += 1
        if self._count > MAX_PARTS + 1:
            raise BodyError(400, _ODD_FORM)
        self._part = _Part()

    def finish(self) -> Asked:
        if self._error:
            raise self._error
        if not self._part or bytes(self._part.text) + self._rest not in (b"--", b"--\r\n"):
            raise BodyError(400, _ODD_FORM)
        if len(self._models) != 1 or self._models[0] is None:
            raise BodyError(400, "the form has not exactly one field `model`")
        try:
            return Asked((_named(self._models[0].decode()),))
        except UnicodeDecodeError:
            raise BodyError(400, "the name of the model is not UTF-8") from None


class _Part:
    """A part of a form, or what follows the last one. Kept are its header, and then its content if that is a model."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.is_file = False
        self._name: bytes | None = None  # None as long as its header has not ended

    def add(self, data: bytes) -> None:
        seen = len(self.text)
        self.text += data
        if self._name is None and (blank := self.text.find(b"\r\n\r\n", max(2, seen - 3))) >= 0:
            self._read_header(bytes(self.text[:blank]))
            del self.text[: blank + 4]
        if self._name not in (None, b"model"):
            del self.text[:-2]
        if len(self.text) > MAX_PART_HEAD:
            raise BodyError(400, _ODD_FORM)

    def _read_header(self, header: bytes) -> None:
        lines = header[2:].split(b"\r\n")
        names = [found for line in lines if (found := _DISPOSITION.fullmatch(line))]
        others = [line for line in lines if _OTHER_HEADER.fullmatch(line)]
        if not header.startswith(b"\r\n") or len(names) != 1 or len(others) != len(lines) - 1:
            raise BodyError(400, _ODD_FORM)
        self._name, self.is_file = names[0][1] or names[0][2] or b"", bool(names[0][3] or names[0][6])

    def end(self) -> bytes:
        """The name of a part that has ended."""
        if self._name is None or not self.text.endswith(b"\r\n"):
            raise BodyError(400, _ODD_FORM)
        return self._name
