"""A principal, a route, models -> allowed, or denied with a reason. Pure, and deny is what it falls back to.

In two steps. `check_route` judges the head of a request; where `needs_models` then says so, its body is read before any
of it goes upstream, and `check_asked` judges what is in it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..http.head import Fields
from ..ollama_api.listings import is_account, is_listing
from ..ollama_api.model_names import allowed, is_cloud
from ..ollama_api.request_models import Asked
from ..ollama_api.routes import Route, RouteClass, methods, similar_paths
from .keys import BY_NAME, Principal, Scope

NEEDS: dict[RouteClass, Scope] = {
    RouteClass.HEALTH: Scope.LIST,
    RouteClass.LIST: Scope.LIST,
    RouteClass.INFER: Scope.INFER,
    RouteClass.EMBED: Scope.EMBED,
    RouteClass.CLOUD: Scope.CLOUD,
    RouteClass.PULL: Scope.PULL,
    RouteClass.WRITE: Scope.WRITE,
    RouteClass.BLOB: Scope.WRITE,
    RouteClass.DELETE: Scope.DELETE,
    RouteClass.PUSH: Scope.PUSH,
    RouteClass.ACCOUNT: Scope.ACCOUNT,
    RouteClass.UNKNOWN: Scope.ALL,
}
"""The scope that a class of requests needs."""

SEE_ACCOUNT = (Scope.PUSH, Scope.CLOUD, Scope.ACCOUNT)
"""Each of these is enough to ask whose account it is, as the stock CLI does before it pushes, and before it chats with
a cloud model."""

REPLAY_HURTS = frozenset({
    RouteClass.WRITE, RouteClass.BLOB, RouteClass.DELETE, RouteClass.PUSH, RouteClass.ACCOUNT, RouteClass.UNKNOWN,
})  # fmt: skip
"""Where a signed request that somebody sends again, perhaps with another body, does harm."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why not: the status, a word for the log, and what the client is told, in a message and in header fields."""

    status: int
    reason: str
    message: str
    fields: Fields = ()


def holds(principal: Principal, scope: Scope) -> bool:
    """Has a principal that scope?"""
    return scope in principal.scopes or (Scope.ALL in principal.scopes and scope not in BY_NAME)


def check_valid(principal: Principal, now: float) -> Denial | None:
    """May the principal do anything? `now` is in seconds since 1970."""
    if principal.disabled:
        return Denial(401, "disabled", "the key is disabled: ask who gave it to you")
    if principal.expires is not None and now >= principal.expires:
        return Denial(401, "expired", "the key has expired")
    return None


def check_route(principal: Principal, route: Route, now: float) -> Denial | None:
    """May the principal send such a request at all? `now` is in seconds since 1970."""
    if denial := check_valid(principal, now):
        return denial
    enough = SEE_ACCOUNT if is_account(route) else (NEEDS[route.route_class],)
    denied = not any(holds(principal, scope) for scope in enough)
    if route.route_class is RouteClass.UNKNOWN and (denied or principal.models is not None):
        return _unknown(route.path, denied)
    return _lacks(" or ".join(enough), "this request needs") if denied else None


def _unknown(path: bytes, denied: bool) -> Denial:
    """Deny a path that is not in the table of routes: the client's address may be wrong, or its method."""
    if served := b", ".join(methods(path)):
        return Denial(405, "wrong path", f"Ollama serves this path with {served.decode()}", ((b"allow", served),))
    if similar := b" or ".join(similar_paths(path)):
        message = f"Ollama has no such path: did you mean {similar.decode()}? Check the client's base URL"
        return Denial(404, "wrong path", message)
    if denied:
        return _lacks(Scope.ALL, "a path that is not known here needs: check the client's base URL")
    return Denial(403, "model", "this key is for some models alone, and which one this path uses is not known")


def needs_models(principal: Principal, route: Route) -> bool:
    """Must the body be read, and `check_asked` be asked, before the request is admitted?

    So that its tokens can be reserved, too.
    """
    if route.prompts and principal.tokens_limited:
        return True
    scopes = (Scope.CLOUD, Scope.PULL) if route.route_class is RouteClass.WRITE else (Scope.CLOUD,)
    return route.takes_model and (principal.models is not None or not all(holds(principal, s) for s in scopes))


def check_asked(principal: Principal, asked: Asked) -> Denial | None:
    """May the principal have all that a request asks for?"""
    if asked.pulls and not holds(principal, Scope.PULL):
        return _lacks(Scope.PULL, "`from` needs, because Ollama pulls a model that is not there")
    if asked.searches and not holds(principal, Scope.CLOUD):
        return _lacks(Scope.CLOUD, "the web_search tool needs: turn that tool off in the client, or add the scope")
    return check_models(principal, asked.names)


def check_models(principal: Principal, names: Iterable[str]) -> Denial | None:
    """May the principal use all of these models?"""
    for name in names:
        if principal.models is not None and not allowed(principal.models, name):
            return Denial(403, "model", f"this key may not use the model {name}")
        if is_cloud(name) and not holds(principal, Scope.CLOUD):
            return _lacks(Scope.CLOUD, f"the model {name} needs")
    return None


def listing_filtered(principal: Principal, route: Route) -> bool:
    """Must models be taken out of the answer, by `filter_listing` and what `usable` says?"""
    return is_listing(route) and (principal.models is not None or not holds(principal, Scope.CLOUD))


def response_filtered(principal: Principal, route: Route) -> bool:
    """Must something be taken out of the answer: models, or what is private of the operator's account?"""
    return listing_filtered(principal, route) or (is_account(route) and not holds(principal, Scope.ACCOUNT))


def usable(principal: Principal) -> Callable[[str], bool]:
    """Whether the principal may use a model."""
    return lambda name: check_models(principal, (name,)) is None


def _lacks(scope: str, why: str) -> Denial:
    return Denial(403, "scope", f"this key lacks the scope {scope}, which {why}")
