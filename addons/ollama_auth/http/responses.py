"""Responses of the gateway itself, in the error format of the client's dialect. Pure; independent of mitmproxy, so
that it still works where mitmproxy fails.

The formats are Ollama's (`{"error": "text"}`), OpenAI's error object and Anthropic's. The body is always one line of
JSON: the `ollama` command line takes an empty 4xx body on a streaming call for success.
"""

import json
from dataclasses import dataclass, replace
from http import HTTPStatus

from ..ollama_api.routes import Dialect
from .head import Fields

REALM = "ollama"
RETRY_SECONDS = 5
"""For Retry-After, where nothing better is known."""

DO_NOT_RETRY = (b"x-should-retry", b"false")
"""OpenAI's and Anthropic's libraries, and programs built on them, repeat many failed requests unless told not to."""
USED_UP = "insufficient_quota"
"""OpenAI's code and type of an error that no waiting for Retry-After will mend; Codex waits for hours otherwise."""

_to_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps makes an encoder for each answer.
# OpenAI's and Anthropic's documented error types.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {**_OPENAI_TYPES, 413: "request_too_large", 503: "overloaded_error"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response: status, header fields (names in lower case), body."""

    status: int
    fields: Fields
    body: bytes

    def to(self, method: bytes) -> "Answer":
        """The response to a request of that method: without its body to HEAD."""
        return replace(self, body=b"") if method == b"HEAD" else self


def id_fields(request_id: str, dialect: Dialect) -> Fields:
    """The fields by which a client can name a request: every response has them. Anthropic's libraries read the second
    one."""
    names = (b"x-request-id", b"request-id") if dialect is Dialect.ANTHROPIC else (b"x-request-id",)
    return tuple((name, request_id.encode()) for name in names)


def error(
    request_id: str,
    status: int,
    message: str,
    dialect: Dialect = Dialect.OLLAMA,
    *extra: tuple[bytes, bytes],
    code: str | None = None,
) -> Answer:
    """An error in the format of `dialect`, with `extra` fields; `code` is OpenAI's short machine-readable reason."""
    body = _to_json(_shape(status, message, dialect, code)).encode() + b"\n"
    fields = (
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *id_fields(request_id, dialect),
        *extra,
    )
    return Answer(status, fields, body)


def challenges(*, sent: bool, basic: bool) -> Fields:
    """The challenge of RFC 6750 section 3, `invalid_token` only where a credential was sent; before it, if `basic`,
    that of RFC 7617, without which wget and `curl --anyauth` keep their password to themselves."""
    bearer = f'Bearer realm="{REALM}"' + (', error="invalid_token"' if sent else "")
    offered = [f'Basic realm="{REALM}"', bearer] if basic else [bearer]
    return tuple((b"www-authenticate", challenge.encode()) for challenge in offered)


def retry_after(seconds: int) -> tuple[bytes, bytes]:
    """The Retry-After header field (RFC 9110 section 10.2.3)."""
    return (b"retry-after", b"%d" % seconds)


def render(answer: Answer, *, close: bool = True) -> bytes:
    """Serialize an answer as HTTP/1.1; `close` adds `Connection: close`."""
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}".encode()]
    lines += [name.title() + b": " + value for name, value in answer.fields]
    lines += [b"Connection: close"] if close else []
    return b"\r\n".join(lines) + b"\r\n\r\n" + answer.body


def _shape(status: int, message: str, dialect: Dialect, code: str | None) -> dict[str, object]:
    other = "invalid_request_error" if status < 500 else "api_error"
    match dialect:
        case Dialect.OPENAI:
            kind = USED_UP if code == USED_UP else _OPENAI_TYPES.get(status, other)
            return {"error": {"message": message, "type": kind, "param": None, "code": code}}
        case Dialect.ANTHROPIC:
            return {"type": "error", "error": {"type": _ANTHROPIC_TYPES.get(status, other), "message": message}}
        case Dialect.OLLAMA:
            return {"error": message}
