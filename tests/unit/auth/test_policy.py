"""Who may send what: one table of scopes, and everything that is not in it is denied."""

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.auth.keys import DEFAULT_SCOPES, Principal, Scope
from ollama_auth.auth.policy import (
    NEEDS,
    REPLAY_HURTS,
    Denial,
    check_asked,
    check_models,
    check_route,
    holds,
    listing_filtered,
    needs_models,
    response_filtered,
    usable,
)
from ollama_auth.ollama_api.request_models import Asked
from ollama_auth.ollama_api.routes import _ROUTES, Route, RouteClass, route
from tests.harness.cases import each_of

NOW = 1_800_000_000.0
ROUTES = [route(method, path) for method, path in _ROUTES] + [
    route(b"GET", b"/anything"),
    route(b"POST", b"/v1/messages/unheard_of"),
    route(b"PUT", b"/api/chat"),
    route(b"OPTIONS", b"/api/chat"),
]
CHAT, TAGS, CREATE, COPY, SHOW = (
    route(method, path)
    for method, path in (
        (b"POST", b"/api/chat"),
        (b"GET", b"/api/tags"),
        (b"POST", b"/api/create"),
        (b"POST", b"/api/copy"),
        (b"POST", b"/api/show"),
    )
)
UNKNOWN = route(b"GET", b"/anything")
EVERYTHING = frozenset(Scope)


def somebody(*scopes: Scope, models: tuple[str, ...] | None = None, expires: float | None = None) -> Principal:
    return Principal("somebody", frozenset(scopes), models, expires)


scopes = st.frozensets(st.sampled_from(Scope))
routes = st.sampled_from(ROUTES)


# Routes and scopes.


def enough(asked: Route) -> set[Scope]:
    """The scopes any of which opens a route."""
    whose = asked.path == b"/api/me" and asked.route_class is RouteClass.ACCOUNT
    return {Scope.PUSH, Scope.CLOUD, Scope.ACCOUNT} if whose else {NEEDS[asked.route_class]}


@each_of("asked", ROUTES, ids=lambda asked: asked.path.decode())
@each_of("scope", Scope)
def test_one_scope_opens_its_routes_and_no_others(scope: Scope, asked: Route) -> None:
    denial = check_route(somebody(scope), asked, NOW)
    if scope in enough(asked) or (scope is Scope.ALL and enough(asked) != {Scope.ACCOUNT}):
        assert denial is None
    elif asked.route_class is RouteClass.UNKNOWN and asked.path == b"/api/chat":
        assert (denial and denial.status, denial and denial.fields) == (405, ((b"allow", b"POST"),))
    else:
        assert denial
        assert (denial.status, denial.reason) == (403, "scope")
        assert all(one in denial.message.partition(",")[0] for one in enough(asked))


@each_of("asked", ROUTES, ids=lambda asked: asked.path.decode())
def test_the_one_key_of_the_environment_may_do_everything_and_nobody_without_scopes_anything(asked: Route) -> None:
    everybody = Principal("default")
    assert check_route(everybody, asked, NOW) is None
    assert not needs_models(everybody, asked)
    assert not listing_filtered(everybody, asked)
    assert check_route(somebody(), asked, NOW)


@given(scopes, scopes, routes)
def test_more_scopes_never_close_a_route(some: frozenset[Scope], more: frozenset[Scope], asked: Route) -> None:
    if check_route(somebody(*some), asked, NOW) is None:
        assert check_route(somebody(*some, *more), asked, NOW) is None


@given(scopes, routes)
def test_scopes_together_open_what_each_of_them_does(some: frozenset[Scope], asked: Route) -> None:
    each = any(check_route(somebody(scope), asked, NOW) is None for scope in some)
    assert (check_route(somebody(*some), asked, NOW) is None) is each


def test_each_class_of_routes_has_a_scope() -> None:
    assert set(NEEDS) == set(RouteClass)
    assert set(NEEDS.values()) == EVERYTHING - {Scope.ADMIN}, "which opens nothing at Ollama"


def test_all_holds_every_scope_but_those_that_are_named() -> None:
    assert {scope for scope in Scope if holds(somebody(Scope.ALL), scope)} == EVERYTHING - {Scope.ACCOUNT, Scope.ADMIN}
    for scope in (Scope.ACCOUNT, Scope.ADMIN):
        assert holds(somebody(Scope.ALL, scope), scope)
        assert holds(Principal("default"), scope), "the one key of the environment"


@each_of("asked", ROUTES, ids=lambda asked: asked.path.decode())
def test_a_key_that_expired_opens_nothing(asked: Route) -> None:
    for scopes in (EVERYTHING, frozenset[Scope]()):
        denial = check_route(somebody(*scopes, expires=NOW), asked, NOW)
        assert denial
        assert (denial.status, denial.reason) == (401, "expired")
    assert check_route(somebody(*EVERYTHING, expires=NOW + 0.001), asked, NOW) is None


@each_of("asked", ROUTES, ids=lambda asked: asked.path.decode())
def test_a_key_that_is_disabled_opens_nothing(asked: Route) -> None:
    denial = check_route(replace(somebody(*EVERYTHING), disabled=True), asked, NOW)
    assert denial
    assert (denial.status, denial.reason) == (401, "disabled")


def test_an_unknown_path_is_not_for_a_key_of_some_models() -> None:
    """Nobody could say which model it uses."""
    denial = check_route(somebody(*EVERYTHING, models=("*/*/*",)), UNKNOWN, NOW)
    assert denial
    assert (denial.status, denial.reason) == (403, "model")


@each_of("who", [somebody(Scope.LIST), somebody(Scope.ALL, models=("m",))])
@each_of(
    ("method", "path", "status", "told"),
    [
        (b"GET", b"/api/chat", 405, "with POST"),
        (b"POST", b"/v1/models/m", 405, "with GET, HEAD"),
        (b"POST", b"/v1/v1/chat/completions", 404, "mean /v1/chat/completions?"),
        (b"POST", b"/chat/completions", 404, "mean /v1/chat/completions?"),
        (b"POST", b"/API/CHAT", 404, "mean /api/chat?"),
        (b"POST", b"/embeddings", 404, "mean /api/embeddings or /v1/embeddings?"),
    ],
)
def test_a_wrong_address_is_told_the_right_one(
    who: Principal, method: bytes, path: bytes, status: int, told: str
) -> None:
    denial = check_route(who, route(method, path), NOW)
    assert denial
    assert (denial.status, denial.reason) == (status, "wrong path")
    assert told in denial.message
    assert check_route(somebody(Scope.ALL), route(method, path), NOW) is None, "Ollama answers itself"


def test_whose_account_it_is_may_be_asked_by_who_uses_it() -> None:
    """Of the answer they see what they need; signing out is another matter."""
    me, sign_out = route(b"POST", b"/api/me"), route(b"POST", b"/api/signout")
    for scope in (Scope.PUSH, Scope.CLOUD, Scope.ALL):
        assert check_route(somebody(scope), me, NOW) is None
        assert response_filtered(somebody(scope), me)
        assert check_route(somebody(scope), sign_out, NOW)
        assert check_route(somebody(scope), route(b"GET", b"/api/me"), NOW) is None or scope is not Scope.ALL
    assert not response_filtered(somebody(Scope.ACCOUNT), me)


def test_where_a_replay_hurts() -> None:
    hurting = {NEEDS[found] for found in REPLAY_HURTS}
    assert hurting == {Scope.WRITE, Scope.DELETE, Scope.PUSH, Scope.ACCOUNT, Scope.ALL}
    assert {found for found in RouteClass if NEEDS[found] in hurting} == REPLAY_HURTS


# Whose body is read.

TAKING = {
    b"/api/generate", b"/api/chat", b"/api/embed", b"/api/embeddings", b"/api/show", b"/api/pull", b"/api/push",
    b"/api/create", b"/api/copy", b"/api/delete", b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings",
    b"/v1/responses", b"/v1/messages", b"/v1/messages/count_tokens", b"/v1/audio/transcriptions", b"/v1/models/*",
}  # fmt: skip
LISTINGS = {b"/api/tags", b"/api/ps", b"/v1/models"}


@each_of("asked", ROUTES, ids=lambda asked: asked.path.decode())
@each_of(
    ("who", "limited"),
    [
        (somebody(*DEFAULT_SCOPES), True),
        (somebody(*DEFAULT_SCOPES, models=("m",)), True),
        (somebody(*EVERYTHING, models=()), True),
        (somebody(Scope.ALL, models=("*",)), True),
        (somebody(*(EVERYTHING - {Scope.CLOUD, Scope.ALL})), True),
        (somebody(Scope.ALL), False),
        (somebody(Scope.INFER, Scope.PULL, Scope.CLOUD), False),
    ],
)
def test_whose_models_are_looked_at(who: Principal, limited: bool, asked: Route) -> None:
    known = asked.route_class is not RouteClass.UNKNOWN
    assert needs_models(who, asked) is (limited and known and asked.path in TAKING)
    assert listing_filtered(who, asked) is (limited and known and asked.path in LISTINGS)


def test_what_a_model_is_created_from_is_looked_at_where_the_key_may_not_pull() -> None:
    writer = somebody(Scope.WRITE, Scope.CLOUD)
    assert needs_models(writer, CREATE)
    assert not needs_models(somebody(Scope.WRITE, Scope.CLOUD, Scope.PULL), CREATE)
    denial = check_asked(writer, Asked(("m:latest", "n:latest"), pulls=True))
    assert denial
    assert (denial.status, denial.reason) == (403, "scope")
    assert "the scope pull," in denial.message
    assert check_asked(writer, Asked(("m:latest",))) is None


# Models.


def test_a_model_that_is_not_on_the_list_is_named() -> None:
    denial = check_models(somebody(*EVERYTHING, models=("m", "q*")), ("m:latest", "q:8b", "other:8b"))
    assert denial == Denial(403, "model", "this key may not use the model other:8b")
    assert check_models(somebody(*EVERYTHING, models=("m", "q*")), ("m:latest", "q:8b")) is None


def test_an_empty_list_allows_no_model_and_no_list_all() -> None:
    assert check_models(somebody(*EVERYTHING, models=()), ("m:latest",))
    assert check_models(somebody(*EVERYTHING), ("m:latest", "hf.co/a/b:q4", "m:8b-cloud")) is None
    assert check_models(somebody(models=()), ()) is None


@each_of("name", ["m:cloud", "m:8b-cloud", "n/m:8b-cloud", "M:CLOUD"])
@each_of("scope", sorted(EVERYTHING - {Scope.CLOUD, Scope.ALL}))
@each_of("models", [None, ("*:*", "*/*:*", "*/*/*:*")])
def test_a_cloud_model_needs_the_scope_cloud(models: tuple[str, ...] | None, scope: Scope, name: str) -> None:
    denial = check_models(somebody(scope, models=models), (name,))
    assert denial == Denial(403, "scope", f"this key lacks the scope cloud, which the model {name} needs")
    assert check_models(somebody(scope, Scope.CLOUD, models=models), (name,)) is None
    assert check_models(somebody(Scope.ALL, models=models), (name,)) is None


def test_a_cloud_model_must_be_on_the_list_too() -> None:
    denial = check_models(somebody(*EVERYTHING, models=("m",)), ("m:cloud",))
    assert denial
    assert denial.reason == "model"


def test_the_web_search_of_ollama_needs_the_scope_cloud() -> None:
    denial = check_asked(somebody(*DEFAULT_SCOPES), Asked(("m:latest",), searches=True))
    assert denial
    assert (denial.status, denial.reason) == (403, "scope")
    assert "the scope cloud," in denial.message
    assert check_asked(somebody(Scope.CLOUD), Asked(("m:latest",), searches=True)) is None


names = st.sampled_from(["m:latest", "m:8b", "n/m:latest", "m:cloud", "q:8b-cloud", "hf.co/a/b:q4", "not a name", ""])
lists = st.none() | st.lists(st.sampled_from(["m", "m:*", "q*", "*", "n/*", "*/*/*", "[bad"]), max_size=3).map(tuple)


@given(scopes, lists, st.lists(names, max_size=4))
def test_all_models_of_a_request_must_be_usable(
    some: frozenset[Scope], models: tuple[str, ...] | None, wanted: list[str]
) -> None:
    who = somebody(*some, models=models)
    each = all(map(usable(who), wanted))
    assert (check_models(who, wanted) is None) is each
    assert (check_asked(who, Asked(tuple(wanted))) is None) is each


# The matrix: what the steps say together, against a rule that is written down once more, the other way round.

WHO = [
    somebody(*some, models=models, expires=expires)
    for some in [(), *((scope,) for scope in Scope), tuple(DEFAULT_SCOPES), tuple(EVERYTHING)]
    for models in (None, ("m",))
    for expires in (None, NOW - 1)
]
ASKED = [
    Asked(("m:latest",)),
    Asked(("other:8b",)),
    Asked(("m:cloud",)),
    Asked(("m:latest",), pulls=True, searches=True),
]


def admitted(who: Principal, where: Route, asked: Asked) -> bool:
    if check_route(who, where, NOW):
        return False
    return not needs_models(who, where) or check_asked(who, asked) is None


def rule(who: Principal, where: Route, asked: Asked) -> bool:
    held = set(who.scopes) | (EVERYTHING - {Scope.ACCOUNT} if Scope.ALL in who.scopes else set())
    needed: set[Scope] = set()
    model_named = where.path in TAKING and where.route_class is not RouteClass.UNKNOWN
    if model_named:
        needed |= {Scope.CLOUD} if asked.searches or any("cloud" in name for name in asked.names) else set()
        needed |= {Scope.PULL} if asked.pulls else set()
    listed = who.models is None or (
        where.route_class is not RouteClass.UNKNOWN and not (model_named and asked.names != ("m:latest",))
    )
    return who.expires is None and needed <= held and bool(enough(where) & held) and listed


@each_of("where", ROUTES, ids=lambda where: where.path.decode())
def test_the_matrix_of_scope_route_and_model(where: Route) -> None:
    for who, asked in itertools.product(WHO, ASKED):
        if asked.pulls and where.route_class is not RouteClass.WRITE:
            continue  # Only a body of /api/create says so.
        assert admitted(who, where, asked) is rule(who, where, asked), (who, where, asked)
