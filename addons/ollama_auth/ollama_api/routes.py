"""Method and path -> what class of request it is and which dialect its client speaks. Pure, one table.

Ollama routes on the percent-decoded, case-sensitive path (seen: /api/%74ags is /api/tags), and so do we.
"""

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote_to_bytes

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py


class Dialect(StrEnum):
    """Whose words an error is put in."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class RouteClass(StrEnum):
    """What a request is for. A path in no table is `unknown`."""

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


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: its class, its dialect, and the path as Ollama decodes it (bytes)."""

    route_class: RouteClass
    dialect: Dialect
    path: bytes


# Ollama's API as of 0.33. A path that ends in "*" stands for all one segment below it.
_TABLE: dict[RouteClass, str] = {
    RouteClass.HEALTH: "GET,HEAD / /api/version",
    RouteClass.LIST: """GET,HEAD /api/tags /v1/models /v1/models/* /api/ps /api/status
        /api/experimental/model-recommendations
        POST /api/show""",
    RouteClass.INFER: """POST /api/generate /api/chat /v1/chat/completions /v1/completions /v1/responses
        /v1/messages /v1/audio/transcriptions""",
    RouteClass.EMBED: "POST /api/embed /api/embeddings /v1/embeddings",
    RouteClass.CLOUD: "POST /api/experimental/web_search /api/experimental/web_fetch",
    RouteClass.PULL: "POST /api/pull",
    RouteClass.WRITE: "POST /api/create /api/copy",
    RouteClass.BLOB: "HEAD,POST /api/blobs/*",
    RouteClass.DELETE: "DELETE /api/delete",
    RouteClass.PUSH: "POST /api/push",
    RouteClass.ACCOUNT: "POST /api/me /api/signout DELETE /api/user/keys/*",
}


def _expand(table: dict[RouteClass, str]) -> dict[tuple[bytes, bytes], RouteClass]:
    routes: dict[tuple[bytes, bytes], RouteClass] = {}
    for route_class, row in table.items():
        methods: list[bytes] = []
        for word in row.split():
            if word.startswith("/"):
                routes |= {(method, word.encode()): route_class for method in methods}
            else:
                methods = [method.encode() for method in word.split(",")]
    return routes


_ROUTES = _expand(_TABLE)


def _pattern(path: bytes) -> bytes:
    parent, _, last = path.rpartition(b"/")
    return parent + b"/*" if last else b""


def route(method: bytes, target: bytes) -> Route:
    """Classify a request by its method and its request target in origin form, query and all."""
    path = unquote_to_bytes(target.partition(b"?")[0])
    found = _ROUTES.get((method, path)) or _ROUTES.get((method, _pattern(path))) or RouteClass.UNKNOWN
    return Route(found, dialect(path), path)


def dialect(path: bytes) -> Dialect:
    """The dialect of a decoded path: Anthropic's for its one route, OpenAI's below /v1, else Ollama's own."""
    if path == b"/v1/messages" or path.startswith(b"/v1/messages/"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if path.startswith(b"/v1/") else Dialect.OLLAMA
