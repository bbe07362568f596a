"""Lists of models in Ollama's answers, reduced to the models that a key may use. Pure."""

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
