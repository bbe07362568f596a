"""The models that a request asks Ollama to use, read from its body as Ollama reads it. Pure.

The body that is inspected is the one that goes upstream, so a body that two readers could take differently is refused,
never repaired. Ollama's handlers decode the first JSON value with Go's encoding/json and ignore the rest (seen in 0.33;
where an older version reads less than that, this only refuses more). All readers raise BodyError.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Any
from urllib.parse import unquote_to_bytes

from ..errors import RefusedError
from .model_names import WHITE_SPACE, canonical, is_cloud, reference

MAX_MARKS = 2_000_000
"""Brackets, braces, quotes, colons and commas in a JSON body: far more than real requests have. A body with more would
take seconds and hundreds of megabytes to parse, so it is refused unread."""
MAX_PARTS = 100
"""Parts of a multipart form."""
MAX_MEMBER = 16
"""Characters of the longest member name that is read; longer names are not kept."""


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


type ModelReader = Callable[[bytes, bytes, bytes, bytes], Asked]
"""Reads the models from the decoded path, the query, the Content-Type and the whole decoded body of a request.

Raises BodyError, also where Ollama would refuse a name."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A model's name in a JSON body: the first of these members that is not empty, and how Ollama reads the name."""

    keys: tuple[str, ...]
    canonical: Callable[[str], str | None] = reference
    required: bool = True


@dataclass(frozen=True, slots=True)
class JsonModels:
    """Models named in members of a JSON object."""

    members: tuple[_Member, ...]
    searches: bool = False
    """The request may have `tools` that make Ollama itself search the web."""
    creates: bool = False
    """The request makes a model from another one, which Ollama pulls if it is missing."""

    def __call__(self, path: bytes, query: bytes, content_type: bytes, body: bytes) -> Asked:
        value = _Object.first(body)
        names = []
        for member in self.members:
            text = next(filter(None, [value.string(key) for key in member.keys]), "")
            if text:
                names.append(_named(text, member.canonical))
            elif member.required:
                raise BodyError(400, f"the request body has no `{member.keys[0]}`")
        # /v1 looks for a cloud model first, in a map: under the last key `model` in exactly these letters.
        exact = next((text for _, key, text in reversed(value) if key == "model"), None)
        if isinstance(exact, str) and is_cloud(exact) and (name := reference(exact)):
            names.append(name)
        if self.creates and any(any(value.values(key)) for key in _OTHER_SOURCES):  # null and "" are no sources
            raise BodyError(400, "modelfile, path and remote_host are not taken here: name the model in `from`")
        return Asked(
            tuple(dict.fromkeys(names)),
            pulls=self.creates and bool(value.string("from")),
            searches=self.searches and value.searches(),
        )


def in_form(path: bytes, query: bytes, content_type: bytes, body: bytes) -> Asked:
    """Read the one field `model` of a multipart form. Go's FormValue prefers a parameter of the query to it."""
    for parameter in re.split(b"[&;]", query):
        if unquote_to_bytes(parameter.partition(b"=")[0].replace(b"+", b" ")) == b"model":
            raise BodyError(400, "the model belongs in the form, not in the query")
    found = [content for name, content in _parts(content_type, body) if name == b"model"]
    if len(found) != 1 or found[0] is None:
        raise BodyError(400, "the form has not exactly one field `model`")
    try:
        return Asked((_named(found[0].decode()),))
    except UnicodeDecodeError:
        raise BodyError(400, "the name of the model is not UTF-8") from None


def in_path(path: bytes, query: bytes, content_type: bytes, body: bytes) -> Asked:
    """Read the model named in the last segment of the path."""
    return Asked((_named(path.rpartition(b"/")[2].decode("utf-8", "replace")),))


MODEL: ModelReader = JsonModels((_Member(("model",)),))
MODEL_AND_TOOLS: ModelReader = JsonModels((_Member(("model",)),), searches=True)
MODEL_OR_NAME: ModelReader = JsonModels((_Member(("model", "name")),))
# These three take a name literally: m:local is the tag `local` there.
PUSHED: ModelReader = JsonModels((_Member(("model", "name"), canonical),))
CREATED: ModelReader = JsonModels(
    (_Member(("model", "name"), canonical), _Member(("from",), required=False)), creates=True
)
COPIED: ModelReader = JsonModels((_Member(("source",), canonical), _Member(("destination",), canonical)))

# What else may say what a new model is made of: a Modelfile and a path in older versions, and another server.
_OTHER_SOURCES = ("modelfile", "path", "remote_host")


def _named(text: str, canonical: Callable[[str], str | None] = reference) -> str:
    name = canonical(text)
    if name is None:
        raise BodyError(400, "the name of the model is not a valid one")
    return name


# How Python's json module differs from Go's encoding/json, and what is done about it:
# - UTF-16, UTF-32 and a byte order mark are detected: decoded here, as UTF-8 only.
# - Bytes that are not UTF-8 are an error, and U+FFFD in Go: refused, which loses nothing.
# - NaN, Infinity and -Infinity are numbers: refused, as in Go.
# - A dict keeps the last of equal keys, and does not fold them: pairs are kept.
# - null is a value, and in Go leaves the field as it was: skipped.
# - Anything after the first value is an error, and ignored in Go: ignored, but for its encoding.
# - Lone surrogates are kept, and U+FFFD in Go: neither is valid in a name, but logs can't be written with the first.
# - Numbers of 5,000 digits are an error or take very long: not converted.
# - Nesting ends at another depth (in Go at 10,000): refused at the lesser one.


def reject_constant(_: str) -> None:
    """Refuse NaN, Infinity and -Infinity. Raises ValueError."""
    raise ValueError("JSON has no such number")


# Keys are folded as in Go: simple case folding, in which two characters beyond ASCII equal ASCII letters.
_FOLDED = str.maketrans(ascii_uppercase + "\N{LATIN SMALL LETTER LONG S}\N{KELVIN SIGN}", ascii_lowercase + "sk")
_DECODER = json.JSONDecoder(
    object_pairs_hook=lambda pairs: _Object([(k.translate(_FOLDED), k, v) for k, v in pairs if len(k) <= MAX_MEMBER]),
    parse_int=bool,
    parse_float=bool,
    parse_constant=reject_constant,
)
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Object(list[tuple[str, str, Any]]):
    """The pairs of a JSON object, in order: (folded key, key, value)."""

    @classmethod
    def first(cls, body: bytes) -> "_Object":
        """Decode the first JSON value of a body, which has to be an object. Raises BodyError."""
        if sum(map(body.count, (b"[", b"{", b'"', b":", b","))) > MAX_MARKS:
            raise BodyError(413, "the request body is too intricate to be inspected")
        try:
            value, _ = _DECODER.raw_decode(body.decode().lstrip(" \t\n\r"))
        except RecursionError:
            raise BodyError(400, "the request body is nested too deeply") from None
        except ValueError:
            raise BodyError(400, "the request body is not JSON in UTF-8") from None
        if not isinstance(value, cls):
            raise BodyError(400, "the request body is not a JSON object")
        return value

    def values(self, key: str) -> list[Any]:
        """All values other than null whose keys fold to that one."""
        return [value for folded, _, value in self if folded == key and value is not None]

    def string(self, key: str) -> str:
        """The value that Go decodes into a string field: the last but null. Raises BodyError for other types."""
        values = self.values(key)
        if any(not isinstance(value, str) for value in values):
            raise BodyError(400, f"`{key}` in the request body is not a string")
        return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", values[-1]) if values else ""

    def searches(self) -> bool:
        """Whether a tool makes Ollama itself search the web."""
        tools = [tool for value in self.values("tools") if isinstance(value, list) for tool in value]
        types = [value for tool in tools if isinstance(tool, _Object) for value in tool.values("type")]
        return any(isinstance(value, str) and value.strip(WHITE_SPACE).startswith("web_search") for value in types)


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


def _parts(content_type: bytes, body: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """(name, content) of each part; the content of a file is None. Raises BodyError."""
    form = _FORM.fullmatch(content_type)
    if not form:
        raise BodyError(400, "the Content-Type is not multipart/form-data with a boundary")
    first, *parts = body.split(b"--" + (form[1] or form[2]), MAX_PARTS + 1)
    if first or not parts or parts.pop() not in (b"--", b"--\r\n"):
        raise BodyError(400, _ODD_FORM)
    return map(_part, parts)


def _part(part: bytes) -> tuple[bytes, bytes | None]:
    head, blank, content = part[2:-2].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    names = [found for line in lines if (found := _DISPOSITION.fullmatch(line))]
    others = [line for line in lines if _OTHER_HEADER.fullmatch(line)]
    framed = blank and part.startswith(b"\r\n") and part.endswith(b"\r\n")
    if not framed or len(names) != 1 or len(others) != len(lines) - 1:
        raise BodyError(400, _ODD_FORM)
    name = names[0]
    return name[1] or name[2] or b"", None if name[3] or name[6] else content
