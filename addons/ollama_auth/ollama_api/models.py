"""Which models a request would have Ollama use, read as Ollama reads it, and which of them a pattern allows. Pure.

What is judged here is what goes upstream, so a body that two readers could take differently is refused, never repaired.
Names: Ollama's types/model and internal/modelref. Bodies: its handlers, which decode with Go's encoding/json the first
JSON value and ignore the rest. Seen in 0.33; where an older one reads less than that, this only refuses more.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from string import ascii_lowercase, ascii_uppercase
from typing import Any
from urllib.parse import unquote_to_bytes

from .routes import Route, RouteClass

MAX_MARKS = 2_000_000
"""Brackets, braces, quotes, colons and commas in a JSON body: far more than honest ones have. What would take seconds
and hundreds of megabytes to read is refused unread."""
MAX_PARTS = 100
"""Parts of a form."""

_REGISTRY, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
# White space to Go's unicode.IsSpace. Python's str.strip() takes U+001C to U+001F for white space too.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"

# Registry, namespace, model and tag; in a pattern "*" may be anywhere in each of them.
_PARTS = (
    re.compile(r"[a-z0-9_][a-z0-9_.:-]{0,349}"),
    re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}"),
    re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}"),
    re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}"),
)
_PATTERN_PARTS = tuple(re.compile(part.pattern.replace("[a-z", "[*a-z")) for part in _PARTS)

type _Name = tuple[str, str, str, str]


class BodyError(Exception):
    """A body that can't be judged, with the status to refuse it with and a text that has nothing of it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


# Names.


def canonical(name: str) -> str | None:
    """A model's name as `ollama list` shows it, such as `llama3.2:latest`; None where Ollama takes it for no name.

    Without case, and without the registry and the namespace that are the default. The protocol that may stand before a
    registry is dropped, as Ollama drops it.
    """
    parsed = _parse(name, _PARTS)
    return parsed and _shown(parsed)


def reference(text: str) -> str | None:
    """The canonical name of what a request refers to: `:local` means nothing, `m:cloud` and `m:8b:cloud` are the cloud
    models that are listed as `m:cloud` and `m:8b-cloud`, and white space around it is ignored."""
    base, source = _source(text.strip(_SPACE))
    if source and _source(base)[1]:
        return None
    if source == "cloud":
        base += "-cloud" if base.rfind(":") > base.rfind("/") else ":cloud"
    return canonical(base)


def is_cloud(name: str) -> bool:
    """Does that name, as it was sent or canonical, stand for a model that runs at ollama.com?

    A model that somebody made of one under another name can't be told by it.
    """
    return _source(name)[1] == "cloud"


def _source(text: str) -> tuple[str, str]:
    """(the name without its source, "cloud" or "local" or ""). A tag such as 8b-cloud is the tag 8b in the cloud."""
    base, colon, suffix = text.rpartition(":")
    suffix = suffix.strip(_SPACE)
    lower = suffix.lower()
    if colon and lower in ("cloud", "local"):
        return base, lower
    if colon and "/" not in suffix and lower.endswith("-cloud"):
        return f"{base}:{suffix[: -len('-cloud')]}", "cloud"
    return text, ""


def _parse(text: str, parts: Iterable[re.Pattern[str]]) -> _Name | None:
    if not text.isascii():  # lower() makes an ASCII letter of U+212A.
        return None
    text, tag, namespace, registry = text.lower(), None, _NAMESPACE, _REGISTRY
    if text.rfind(":") > text.rfind("/"):
        text, _, tag = text.rpartition(":")
    rest, slash, model = text.rpartition("/")
    if slash:
        rest, slash, namespace = rest.rpartition("/")
    if slash:
        before, protocol, after = rest.partition("://")
        registry = (after or _REGISTRY) if protocol else before
    if tag is None:
        tag = "*" if "*" in model else _TAG
    name = (registry, namespace, model, tag)
    return name if all(part.fullmatch(text) for part, text in zip(parts, name, strict=True)) else None


def _shown(name: _Name) -> str:
    registry, namespace, model, tag = name
    if registry != _REGISTRY:
        return f"{registry}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == _NAMESPACE else f"{namespace}/{model}:{tag}"


# Patterns: the list of a key.


@lru_cache(maxsize=16384)
def _pattern(text: str) -> _Name | None:
    return None if "://" in text else _parse(text, _PATTERN_PARTS)


def check_pattern(text: str) -> str | None:
    """What is wrong with a pattern, or None."""
    if _pattern(text):
        return None
    return "is no name of a model: write it as `ollama list` does, such as llama3.2, llama3.2:*, qwen* or hf.co/*/*"


def allowed(patterns: Collection[str], name: str) -> bool:
    """Does one of the patterns match that name? A name that is none, and a pattern that is none, match nothing.

    `llama3.2` is that model's tag `latest` alone, `llama3.2:*` all its tags, and `qwen*` any tag of any model that
    begins so. A registry and a namespace are the default ones unless the pattern has others: "*" never crosses a "/".
    """
    parsed = _parse(name, _PARTS)
    return parsed is not None and any(_matches(parsed, _pattern(text)) for text in patterns)


def _matches(name: _Name, pattern: _Name | None) -> bool:
    return pattern is not None and all(map(fnmatchcase, name, pattern))


# Requests.


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request would have Ollama do: use models (canonical names), perhaps pull one, perhaps search the web with
    the operator's account at ollama.com."""

    names: tuple[str, ...] = ()
    pulls: bool = False
    searches: bool = False


@dataclass(frozen=True, slots=True)
class _Field:
    """A name in a body: the first of these keys that is not empty, and how Ollama reads it there."""

    keys: tuple[str, ...]
    read: Callable[[str], str | None]
    required: bool = True


_MODEL = (_Field(("model",), reference),)
_MODEL_OR_NAME = (_Field(("model", "name"), reference),)
_FIELDS: dict[bytes, tuple[_Field, ...]] = {
    b"/api/generate": _MODEL,
    b"/api/chat": _MODEL,
    b"/api/embed": _MODEL,
    b"/api/embeddings": _MODEL,
    b"/v1/chat/completions": _MODEL,
    b"/v1/completions": _MODEL,
    b"/v1/embeddings": _MODEL,
    b"/v1/responses": _MODEL,
    b"/v1/messages": _MODEL,
    b"/api/show": _MODEL_OR_NAME,
    b"/api/pull": _MODEL_OR_NAME,
    b"/api/delete": _MODEL_OR_NAME,
    # These three take a name as it stands, so that m:local is the tag `local` there.
    b"/api/push": (_Field(("model", "name"), canonical),),
    b"/api/create": (_Field(("model", "name"), canonical), _Field(("from",), reference, required=False)),
    b"/api/copy": (_Field(("source",), canonical), _Field(("destination",), canonical)),
}
_TRANSCRIPTIONS = b"/v1/audio/transcriptions"
_ONE_MODEL = b"/v1/models/"
_CREATE = b"/api/create"
_SEARCHING = {b"/v1/messages", b"/v1/responses"}
# Other ways to say what a new model is made of: a Modelfile and a path of older versions, and another server.
_REFUSED = ("modelfile", "path", "remote_host")
_KEYS = {key for fields in _FIELDS.values() for field in fields for key in field.keys} | {*_REFUSED, "tools", "type"}
_LONGEST = max(map(len, _KEYS))

_TAKES_MODEL = {
    RouteClass.INFER, RouteClass.EMBED, RouteClass.PULL, RouteClass.WRITE, RouteClass.DELETE, RouteClass.PUSH,
}  # fmt: skip


def takes_model(route: Route) -> bool:
    """Does such a request name models?"""
    path = route.path
    listed = route.route_class is RouteClass.LIST and (path == b"/api/show" or path.startswith(_ONE_MODEL))
    return listed or route.route_class in _TAKES_MODEL


def asked(route: Route, query: bytes, content_type: bytes, body: bytes) -> Asked:
    """What a request asks for, by its route, its query, its one Content-Type and its whole decoded body.

    Raises BodyError. All names are valid ones: what Ollama would refuse as a name is refused here.
    """
    path = route.path
    if not takes_model(route):
        return Asked()
    if path.startswith(_ONE_MODEL):
        return Asked((_named(path.removeprefix(_ONE_MODEL).decode("utf-8", "replace"), reference),))
    if path == _TRANSCRIPTIONS:
        return Asked((_named(_form_model(query, content_type, body), reference),))
    if path not in _FIELDS:
        raise BodyError(403, "which model this path uses is not known here")
    value = _Object.first(body)
    names = [_named(text, field.read) for field in _FIELDS[path] if (text := value.one_of(field))]
    # /v1 looks for a cloud model first, under the key `model` in exactly these letters.
    names += [name for text in value.exactly("model") if is_cloud(text) and (name := reference(text))]
    if path == _CREATE and any(map(value.has, _REFUSED)):
        raise BodyError(400, "modelfile, path and remote_host are not taken here: name the model in `from`")
    return Asked(
        tuple(dict.fromkeys(names)),
        pulls=path == _CREATE and bool(value.string("from")),
        searches=path in _SEARCHING and value.searches(),
    )


def _named(text: str, read: Callable[[str], str | None]) -> str:
    name = read(text)
    if name is None:
        raise BodyError(400, "the name of the model is not a valid one")
    return name


# JSON. What Python's module reads differently from Go's, and what is done about it:
# - UTF-16, UTF-32 and a byte order mark are guessed: decoded here, and UTF-8 alone.
# - Bytes that are not UTF-8 are an error, and U+FFFD in Go: refused, and no loss.
# - NaN, Infinity and -Infinity are numbers: refused, as in Go.
# - A dict forgets all but the last of equal keys, and knows no folded ones: pairs are kept.
# - null is a value, and in Go leaves what was there: passed over.
# - What follows the first value is an error, and ignored in Go: ignored, but for its encoding.
# - Lone surrogates are kept, and U+FFFD in Go: neither is in a name, but logs can't be written with the first.
# - Numbers of 5,000 digits are an error or take forever: not converted.
# - Nesting ends at another depth (in Go at 10,000): refused at the lesser one.


def _no_constant(_: str) -> None:
    raise ValueError("JSON has no such number")


def _no_dict(pairs: list[tuple[str, Any]]) -> "_Object":
    """Of an object what may be of interest is kept."""
    return _Object([(_fold(key), key, value) for key, value in pairs if len(key) <= _LONGEST])


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_dict, parse_int=bool, parse_float=bool, parse_constant=_no_constant, strict=True
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_FOLDED = str.maketrans(ascii_uppercase + "\N{LATIN SMALL LETTER LONG S}\N{KELVIN SIGN}", ascii_lowercase + "sk")


def _fold(key: str) -> str:
    """As Go compares keys: by simple case folding, in which two characters beyond ASCII are ASCII letters too."""
    return key.translate(_FOLDED)


class _Object(list[tuple[str, str, Any]]):
    """A JSON object as (folded key, key, value), in order."""

    @classmethod
    def first(cls, body: bytes) -> "_Object":
        """The first JSON value of a body, which has to be an object. Raises BodyError."""
        if sum(map(body.count, (b"[", b"{", b'"', b":", b","))) > MAX_MARKS:
            raise BodyError(413, "the request body is too intricate to be read")
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
        """The values of all keys that fold to that one."""
        return [value for folded, _, value in self if folded == key and value is not None]

    def has(self, key: str) -> bool:
        """Has that key a value that is not null or empty? A number counts."""
        return any(self.values(key))

    def string(self, key: str) -> str:
        """What Go decodes into a string field: the last value that is not null. Raises BodyError for other types."""
        values = self.values(key)
        if any(not isinstance(value, str) for value in values):
            raise BodyError(400, f"`{key}` in the request body is not a string")
        return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", values[-1]) if values else ""

    def one_of(self, field: _Field) -> str:
        """The first of the field's keys that is not empty. Raises BodyError."""
        text = next(filter(None, [self.string(key) for key in field.keys]), "")
        if field.required and not text:
            raise BodyError(400, f"the request body has no `{field.keys[0]}`")
        return text

    def exactly(self, key: str) -> list[str]:
        """What Go decodes of that key into a map, in which keys have a case: its last value, where it is a string."""
        values = [value for _, unfolded, value in self if unfolded == key]
        return [value for value in values[-1:] if isinstance(value, str)]

    def searches(self) -> bool:
        """Is there a tool that makes Ollama itself search the web?"""
        tools = [tool for value in self.values("tools") if isinstance(value, list) for tool in value]
        types = [value for tool in tools if isinstance(tool, _Object) for value in tool.values("type")]
        return any(isinstance(value, str) and value.strip(_SPACE).startswith("web_search") for value in types)


# multipart/form-data (RFC 7578), narrower than Go's mime/multipart: each line ends in CRLF, nothing stands before,
# between and behind the parts, no part is encoded, and no name has an escape in it.

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


def _form_model(query: bytes, content_type: bytes, body: bytes) -> str:
    """The one `model` of a form. For Go's FormValue a parameter of the query comes before those of the form."""
    for parameter in re.split(b"[&;]", query):
        if unquote_to_bytes(parameter.partition(b"=")[0].replace(b"+", b" ")) == b"model":
            raise BodyError(400, "the model belongs in the form, not in the query")
    found = [content for name, content in _parts(content_type, body) if name == b"model"]
    if len(found) != 1 or found[0] is None:
        raise BodyError(400, "the form has not exactly one field `model`")
    try:
        return found[0].decode()
    except UnicodeDecodeError:
        raise BodyError(400, "the name of the model is not UTF-8") from None


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


# Answers.

_LISTINGS = {
    b"/api/tags": ("models", ("name", "model")),
    b"/api/ps": ("models", ("name", "model")),
    b"/v1/models": ("data", ("id",)),
}


def is_listing(route: Route) -> bool:
    """Is its answer a list of models?"""
    return route.route_class is RouteClass.LIST and route.path in _LISTINGS


def filter_listing(path: bytes, body: bytes, allow: Callable[[str], bool]) -> bytes:
    """Such an answer with the models alone whose every name is allowed; where that is all of them, as it came.

    Raises BodyError.
    """
    try:
        answer = json.loads(body.decode(), parse_constant=_no_constant)
        key, name_keys = _LISTINGS[path]
        models = answer[key] or []
        kept = [model for model in models if all(map(allow, _listed_names(model, name_keys)))]
        if len(kept) == len(models):
            return body
        return json.dumps(answer | {key: kept}, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        raise BodyError(502, "Ollama's list of models could not be read") from None


def _listed_names(model: Any, keys: Iterable[str]) -> list[str]:
    names = [model[key] for key in keys if key in model]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("a model has no name")
    return names
