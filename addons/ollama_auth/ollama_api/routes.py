"""The table of Ollama's routes: what a request is for, and how its models, usage and conversation are read. Pure.

Ollama routes on the percent-decoded, case-sensitive path (seen: /api/%74ags is /api/tags), and so does this table.
To add a route, add its line here; a route that answers with a model's output needs one whole row.
"""

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote_to_bytes

from . import conversation_formats, request_models, usage
from .conversation import ConversationFormat
from .request_models import Asked, BodyError, ModelReader
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

    def asked(self, query: bytes, content_type: bytes, body: bytes) -> Asked:
        """Read what a request asks for from its query, its one Content-Type and its whole decoded body.

        Raises BodyError. All names are valid: what Ollama would refuse as a name is refused here.
        """
        if self.models:
            return self.models(self.path, query, content_type, body)
        if self.takes_model:
            raise BodyError(403, "which model this path uses is not known here")
        return Asked()


def dialect(path: bytes) -> Dialect:
    """The dialect of a decoded path: Anthropic's for its one route, OpenAI's below /v1, else Ollama's own."""
    if path == b"/v1/messages" or path.startswith(b"/v1/messages/"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if path.startswith(b"/v1/") else Dialect.OLLAMA


def _routes(
    route_class: RouteClass,
    words: str,
    models: ModelReader | None = None,
    usage: UsageFormat = NO_USAGE,
    conversation: ConversationFormat | None = None,
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


def _answering(
    route_class: RouteClass,
    words: str,
    *,
    models: ModelReader,
    usage: UsageFormat,
    conversation: ConversationFormat | None,
) -> dict[tuple[bytes, bytes], Route]:
    """Routes that answer with a model's output: nothing of a row has a default."""
    return _routes(route_class, words, models, usage, conversation)


_INFER, _EMBED = RouteClass.INFER, RouteClass.EMBED

# Ollama's API as of 0.33. A path that ends in "*" stands for every path with one segment in its place.
_ROUTES = {
    **_answering(_INFER, "POST /api/generate /api/chat",
        models=request_models.MODEL, usage=usage.OLLAMA, conversation=conversation_formats.OLLAMA),
    **_answering(_INFER, "POST /v1/chat/completions /v1/completions",
        models=request_models.MODEL, usage=usage.OPENAI, conversation=conversation_formats.OPENAI),
    **_answering(_INFER, "POST /v1/responses",
        models=request_models.MODEL_AND_TOOLS, usage=usage.RESPONSES, conversation=conversation_formats.RESPONSES),
    **_answering(_INFER, "POST /v1/messages",
        models=request_models.MODEL_AND_TOOLS, usage=usage.MESSAGES, conversation=conversation_formats.MESSAGES),
    **_answering(_INFER, "POST /v1/audio/transcriptions",
        models=request_models.in_form, usage=NO_USAGE, conversation=None),
    **_answering(_EMBED, "POST /api/embed /api/embeddings",
        models=request_models.MODEL, usage=usage.OLLAMA_EMBEDDING, conversation=None),
    **_answering(_EMBED, "POST /v1/embeddings",
        models=request_models.MODEL, usage=usage.OPENAI_EMBEDDING, conversation=None),

    **_routes(RouteClass.LIST, "GET,HEAD /v1/models/*", request_models.in_path),
    **_routes(RouteClass.LIST, "POST /api/show", request_models.MODEL_OR_NAME),
    **_routes(RouteClass.PULL, "POST /api/pull", request_models.MODEL_OR_NAME),
    **_routes(RouteClass.WRITE, "POST /api/create", request_models.CREATED),
    **_routes(RouteClass.WRITE, "POST /api/copy", request_models.COPIED),
    **_routes(RouteClass.DELETE, "DELETE /api/delete", request_models.MODEL_OR_NAME),
    **_routes(RouteClass.PUSH, "POST /api/push", request_models.PUSHED),

    **_routes(RouteClass.HEALTH, "GET,HEAD / /api/version"),
    **_routes(RouteClass.LIST,
        "GET,HEAD /api/tags /v1/models /api/ps /api/status /api/experimental/model-recommendations"),
    **_routes(RouteClass.CLOUD, "POST /api/experimental/web_search /api/experimental/web_fetch"),
    **_routes(RouteClass.BLOB, "HEAD,POST /api/blobs/*"),
    **_routes(RouteClass.ACCOUNT, "POST /api/me /api/signout DELETE /api/user/keys/*"),
}  # fmt: skip


def route(method: bytes, target: bytes) -> Route:
    """Find the route of a request by its method and its request target in origin form, query and all."""
    path = unquote_to_bytes(target.partition(b"?")[0])
    if found := _ROUTES.get((method, path)):
        return found
    parent, _, last = path.rpartition(b"/")
    if last and (found := _ROUTES.get((method, parent + b"/*"))):
        return Route(found.route_class, found.dialect, path, found.models)  # Answers of these routes are not read.
    return Route(RouteClass.UNKNOWN, dialect(path), path)
