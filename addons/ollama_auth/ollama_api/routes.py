"""The table of Ollama's routes: what a request is for, and how its models, usage and conversation are read. Pure.

Ollama routes on the percent-decoded, case-sensitive path (seen: /api/%74ags is /api/tags), and so does this table.
To add a route, add its line here; a route that answers with a model's output needs one whole row.
"""

import posixpath
import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote_to_bytes

from . import conversation_formats as formats
from . import request_models as models
from . import usage
from .conversation import ConversationFormat
from .request_models import BodyError, BodyReader, Fixed, ModelReader
from .usage import NO_USAGE, UsageFormat


class Dialect(StrEnum):
    """The API whose error format a client understands."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class RouteClass(StrEnum):
    """The purpose of a request. A path in no table is `unknown`."""

    HEALTH = "health"
    LIST = "list"
    INFER = "infer"
    EMBED = "embed"
    CLOUD = "cloud"
    PULL = "pull"
    WRITE = "write"
    BLOB = "blob"
    DELETE = "delete"
    PUSH = "push"
    ACCOUNT = "account"
    UNKNOWN = "unknown"


_NAMES_MODELS = {
    RouteClass.INFER, RouteClass.EMBED, RouteClass.PULL, RouteClass.WRITE, RouteClass.DELETE, RouteClass.PUSH,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Route:
    """A request's class, dialect and path as Ollama decodes it, and how the parts of it and its answer are read."""

    route_class: RouteClass
    dialect: Dialect
    path: bytes
    models: ModelReader | None = None
    """Reader of the models that the request names; None: it names none."""
    usage: UsageFormat = NO_USAGE
    """Reader of the tokens that the answer reports."""
    conversation: ConversationFormat | None = None
    """Reader of both for mitmweb's view; None: they are shown as they are."""

    @property
    def takes_model(self) -> bool:
        """Whether such a request names models."""
        return self.models is not None or self.route_class in _NAMES_MODELS

    @property
    def prompts(self) -> bool:
        """Whether a model reads the body, and so uses tokens."""
        return self.route_class in (RouteClass.INFER, RouteClass.EMBED)

    def body_reader(self, query: bytes, content_type: bytes) -> BodyReader:
        """Return the reader of what a request with this query and this one Content-Type asks for in its body.

        It and its reader raise BodyError. All names are valid: what Ollama would refuse as a name is refused here.
        """
        if self.models:
            return self.models(self.path, query, content_type)
        if self.takes_model:
            raise BodyError(403, "which model this path uses is not known here")
        return Fixed()


def dialect(path: bytes) -> Dialect:
    """The dialect of a decoded path: Anthropic's for its one route, OpenAI's below /v1, else Ollama's own."""
    if path == b"/v1/messages" or path.startswith(b"/v1/messages/"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if path.startswith(b"/v1/") else Dialect.OLLAMA


def _routes(
    route_class: RouteClass,
    words: str,
    models: ModelReader | None,
    usage: UsageFormat,
    conversation: ConversationFormat | None,
) -> dict[tuple[bytes, bytes], Route]:
    """Routes of one kind; `words` are methods, joined by commas, each followed by the paths that are served with it."""
    routes: dict[tuple[bytes, bytes], Route] = {}
    methods: list[bytes] = []
    for word in words.split():
        path = word.encode()
        if word.startswith("/"):
            found = Route(route_class, dialect(path), path, models, usage, conversation)
            routes |= {(method, path): found for method in methods}
        else:
            methods = path.split(b",")
    return routes


def _unread(route_class: RouteClass, words: str, models: ModelReader | None = None) -> dict[tuple[bytes, bytes], Route]:
    """Routes that do not answer with a model's output."""
    return _routes(route_class, words, models, NO_USAGE, None)


_INFER, _EMBED = RouteClass.INFER, RouteClass.EMBED

# Ollama's API as of 0.33. A path that ends in "*" stands for every path with one segment in its place.
_ROUTES = {
    **_routes(_INFER, "POST /api/generate /api/chat", models.MODEL, usage.OLLAMA, formats.OLLAMA),
    **_routes(_INFER, "POST /v1/chat/completions /v1/completions", models.MODEL, usage.OPENAI, formats.OPENAI),
    **_routes(_INFER, "POST /v1/responses", models.MODEL_AND_TOOLS, usage.RESPONSES, formats.RESPONSES),
    **_routes(_INFER, "POST /v1/messages", models.MODEL_AND_TOOLS, usage.MESSAGES, formats.MESSAGES),
    # Ollama has no count_tokens yet, which Anthropic's clients ask for; they know what to do with its 404.
    **_unread(_INFER, "POST /v1/messages/count_tokens", models.MODEL_AND_TOOLS),
    **_routes(_INFER, "POST /v1/audio/transcriptions", models.in_form, usage.TRANSCRIPTION, None),
    **_routes(_EMBED, "POST /api/embed /api/embeddings", models.MODEL, usage.OLLAMA_EMBEDDING, None),
    **_routes(_EMBED, "POST /v1/embeddings", models.MODEL, usage.OPENAI_EMBEDDING, None),

    **_unread(RouteClass.LIST, "GET,HEAD /v1/models/*", models.in_path),
    **_unread(RouteClass.LIST, "POST /api/show", models.MODEL_OR_NAME),
    **_unread(RouteClass.PULL, "POST /api/pull", models.MODEL_OR_NAME),
    **_unread(RouteClass.WRITE, "POST /api/create", models.CREATED),
    **_unread(RouteClass.WRITE, "POST /api/copy", models.COPIED),
    **_unread(RouteClass.DELETE, "DELETE /api/delete", models.MODEL_OR_NAME),
    **_unread(RouteClass.PUSH, "POST /api/push", models.PUSHED),

    **_unread(RouteClass.HEALTH, "GET,HEAD / /api/version"),
    **_unread(RouteClass.LIST,
        "GET,HEAD /api/tags /v1/models /api/ps /api/status /api/experimental/model-recommendations"),
    **_unread(RouteClass.CLOUD, "POST /api/experimental/web_search /api/experimental/web_fetch"),
    **_unread(RouteClass.BLOB, "HEAD,POST /api/blobs/*"),
    **_unread(RouteClass.ACCOUNT, "POST /api/me /api/signout DELETE /api/user/keys/*"),
}  # fmt: skip

PATH_WORDS = frozenset(word for _, path in _ROUTES for word in path.split(b"/")) - {b"*"}
"""What paths of Ollama's API consist of, with the empty word."""


_SLASHES = re.compile(rb"/{2,}")


def decoded_path(target: bytes) -> bytes:
    """Return the path of a request target in origin form as Ollama decodes it."""
    return unquote_to_bytes(target.partition(b"?")[0])


def route(method: bytes, target: bytes) -> Route:
    """Find the route of a request by its method and its request target in origin form, query and all.

    Ollama redirects a path with slashes too many to the one without them (seen: 307, and 301 for GET), so it is judged
    as that one, which is also what anything in between would make of it.
    """
    path = decoded_path(target)
    found = _find(method, path) or _find(method, _without_slashes(path))
    return found or Route(RouteClass.UNKNOWN, dialect(_SLASHES.sub(b"/", path)), path)


def methods(path: bytes) -> list[bytes]:
    """The methods that a path is served with; none for a path that is not known."""
    return [
        method for method in dict.fromkeys(method for method, _ in _ROUTES) if _find(method, _without_slashes(path))
    ]


def similar_paths(path: bytes) -> list[bytes]:
    """The paths that an unknown one may stand for: with a part of the address too many or too few, or in capitals."""
    asked = posixpath.normpath(_without_slashes(path)).lower()
    if not asked.startswith(b"/") or asked == b"/":
        return []
    known = dict.fromkeys(path for _, path in _ROUTES if path != b"/" and b"*" not in path)
    return [one for one in known if asked.endswith(one) or one.endswith(asked)]


def _without_slashes(path: bytes) -> bytes:
    """Return a path without empty segments, and without the slash at its end."""
    return _SLASHES.sub(b"/", path).rstrip(b"/") or path[:1]


def _find(method: bytes, path: bytes) -> Route | None:
    if found := _ROUTES.get((method, path)):
        return found
    parent, _, last = path.rpartition(b"/")
    if last and (found := _ROUTES.get((method, parent + b"/*"))):
        return Route(found.route_class, found.dialect, path, found.models)  # Answers of these routes are not read.
    return None
