"""Lists of models show the allowed ones alone; what can't be read as a list is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.ollama_api.listings import filter_account, filter_listing, is_listing, without_sign_in
from ollama_auth.ollama_api.request_models import BodyError
from ollama_auth.ollama_api.routes import _ROUTES, route
from tests.harness.cases import each_of

TAGS = (
    b'{"models":[{"name":"a:latest","model":"a:latest","size":1,"details":{"families":["x"]}},'
    b'{"name":"b:8b","model":"b:8b","size":20000000000000000001}],"more":"\xc3\xa9"}'
)
OPENAI = b'{"object":"list","data":[{"id":"a:latest","created":1795426772},{"id":"b:8b","object":"model"}]}\n'
LISTINGS = [("/api/tags", "models", TAGS), ("/api/ps", "models", TAGS), ("/v1/models", "data", OPENAI)]


@each_of(("path", "key", "body"), LISTINGS)
@each_of("kept", [["a:latest"], ["b:8b"], []])
def test_a_listing_with_the_allowed_models_alone(path: str, key: str, body: bytes, kept: list[str]) -> None:
    whole = json.loads(body)
    filtered = json.loads(filter_listing(path.encode(), body, kept.__contains__))
    assert filtered == whole | {key: [model for model in whole[key] if (model.get("name") or model["id"]) in kept]}


@each_of(("path", "key", "body"), LISTINGS)
def test_a_listing_of_which_all_is_allowed_stays_as_it_is(path: str, key: str, body: bytes) -> None:
    assert filter_listing(path.encode(), body, lambda name: True) == body
    for empty in (b'{"%s": []}', b'{ "object":"list", "%s":null }\n'):
        assert filter_listing(path.encode(), empty % key.encode(), lambda name: False) == empty % key.encode()


def test_each_name_of_a_listed_model_must_be_allowed() -> None:
    body = b'{"models":[{"name":"a","model":"b"},{"name":"a"},{"model":"a"}]}'
    assert json.loads(filter_listing(b"/api/tags", body, "a".__eq__)) == {"models": [{"name": "a"}, {"model": "a"}]}


@each_of(
    "body",
    [
        *(b"", b"x", b"null", b"[]", b"1", b"{}", b'{"models":{"a":1}}', b'{"models":"name"}', b'{"models":1}'),
        *(
            b'{"models":[1]}',
            b'{"models":["name"]}',
            b'{"models":[{}]}',
            b'{"models":[{"name":"a","model":1}]}',
            b"[" * 100_000,
        ),
        *(b'{"models":[null]}', b'{"models":[]}\xff', b'{"models":[]} x', b'{"models":[{"name":"a","x":NaN}]}'),
        b'{"models":[{"name":"a"}],"x":1e999}',
    ],
)
def test_what_is_no_listing(body: bytes) -> None:
    with pytest.raises(BodyError) as caught:
        filter_listing(b"/api/tags", body, lambda name: False)
    assert caught.value.status == 502


names = st.sampled_from(["model", "name", "from", "tools", "x", "\u017fource"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@given(
    st.binary(max_size=50) | values.map(json.dumps).map(str.encode),
    st.sampled_from([b"/api/tags", b"/v1/models", b"/other"]),
)
def test_any_answer_is_a_listing_or_refused(body: bytes, path: bytes) -> None:
    with pytest.raises(BodyError):
        filter_listing(path, body, lambda name: True)


@given(
    st.binary(max_size=50)
    | values.map(json.dumps).map(str.encode)
    | st.dictionaries(st.sampled_from(["id", "name", "email", "error", "signin_url"]), values)
    .map(json.dumps)
    .map(str.encode),
    st.sampled_from([200, 401, 503]),
)
def test_any_answer_about_the_account_is_reduced_or_refused(body: bytes, status: int) -> None:
    try:
        shown = filter_account(body, status)
    except BodyError:
        assert status == 200
        return
    assert shown == body == b"" or set(json.loads(shown)) <= {"id", "name", "plan", "error"}


def test_a_401_without_a_link_stays_as_it_is() -> None:
    assert without_sign_in(b'{"error": {"message": "x"}}') == b'{"error": {"message": "x"}}'
    assert without_sign_in(b'{"error":"no","SignIn_URL":"https://x"}') == b'{"error":"no"}'
    assert without_sign_in(b'{"error":{"signin_url":"https://x"}}') == b'{"error":"Ollama answered 401"}'
    assert without_sign_in(b"see https://ollama.com/signin") == b'{"error":"Ollama answered 401"}'


def test_which_answers_are_listings() -> None:
    listings = {(method, path) for method, path in _ROUTES if is_listing(route(method, path))}
    assert listings == {(m, p) for m in (b"GET", b"HEAD") for p in (b"/api/tags", b"/api/ps", b"/v1/models")}
