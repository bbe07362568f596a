"""Answers of Ollama, reduced to what a key may see: lists of models, and the operator's account. Pure."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from .request_models import BodyError, reject_constant
from .routes import Route, RouteClass

# Path -> the member that holds the list, and the members of an entry that name its model.
_LISTINGS = {
    b"/api/tags": ("models", ("name", "model")),
    b"/api/ps": ("models", ("name", "model")),
    b"/v1/models": ("data", ("id",)),
}


_SHOWN_OF_ACCOUNT = ("id", "name", "plan", "error")
"""What tells the name whose models `ollama push` may push, and whether somebody is signed in. The mail address, other
names and the link that signs this Ollama in or out, which needs no password, are left out."""


def is_account(route: Route) -> bool:
    """Whether the answer of a route tells about the operator's account at ollama.com."""
    return route.route_class is RouteClass.ACCOUNT and route.path == b"/api/me"


def filter_account(body: bytes, status: int) -> bytes:
    """Return an answer about the operator's account without what is private.

    If it can't be read it is an error of that status without details, or, where it should have been read, BodyError.
    """
    if not body:
        return body
    shown = {}
    try:
        answer = json.loads(body.decode(), parse_constant=reject_constant)
        shown = {key: answer[key] for key in _SHOWN_OF_ACCOUNT if isinstance(answer.get(key), str)}
    except (ValueError, AttributeError, RecursionError):
        if status < 300:
            raise BodyError(502, "Ollama's answer about its account could not be read") from None
    return json.dumps(shown or {"error": f"Ollama answered {status}"}, separators=(",", ":")).encode()


def without_sign_in(body: bytes) -> bytes:
    """Return a 401 of Ollama, as for a cloud model while nobody is signed in, without the link to sign it in."""
    return filter_account(body, 401) if b"signin" in body.lower() else body


def is_listing(route: Route) -> bool:
    """Whether the answer of a route is a list of models."""
    return route.route_class is RouteClass.LIST and route.path in _LISTINGS


def filter_listing(path: bytes, body: bytes, allow: Callable[[str], bool]) -> bytes:
    """Return an answer of that path with only the entries whose every name is allowed; unchanged if all are.

    Raises BodyError.
    """
    try:
        answer = json.loads(body.decode(), parse_constant=reject_constant)
        key, name_keys = _LISTINGS[path]
        models = answer[key] or []
        kept = [model for model in models if all(map(allow, _names(model, name_keys)))]
        if len(kept) == len(models):
            return body
        return json.dumps(answer | {key: kept}, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        raise BodyError(502, "Ollama's list of models could not be read") from None


def _names(model: Any, keys: Iterable[str]) -> list[str]:
    names = [model[key] for key in keys if key in model]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("a model has no name")
    return names
