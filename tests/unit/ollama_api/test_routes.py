"""What a request is for is told by its method and its decoded path, and by nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.ollama_api.routes import _ROUTES, Dialect, Route, RouteClass, dialect, methods, route, similar_paths
from ollama_auth.ollama_api.usage import NO_USAGE
from tests.harness.cases import each_of

R = RouteClass
TABLE = [
    ("HEAD", "/", R.HEALTH),
    ("GET", "/", R.HEALTH),
    ("GET", "/api/version", R.HEALTH),
    ("HEAD", "/api/version", R.HEALTH),
    ("GET", "/api/tags", R.LIST),
    ("HEAD", "/api/tags", R.LIST),
    ("GET", "/api/ps", R.LIST),
    ("GET", "/api/status", R.LIST),
    ("GET", "/v1/models", R.LIST),
    ("GET", "/v1/models/tiny:latest", R.LIST),
    ("GET", "/api/experimental/model-recommendations", R.LIST),
    ("POST", "/api/show", R.LIST),
    ("POST", "/api/generate", R.INFER),
    ("POST", "/api/chat", R.INFER),
    ("POST", "/v1/chat/completions", R.INFER),
    ("POST", "/v1/completions", R.INFER),
    ("POST", "/v1/responses", R.INFER),
    ("POST", "/v1/messages", R.INFER),
    ("POST", "/v1/audio/transcriptions", R.INFER),
    ("POST", "/api/embed", R.EMBED),
    ("POST", "/api/embeddings", R.EMBED),
    ("POST", "/v1/embeddings", R.EMBED),
    ("POST", "/api/experimental/web_search", R.CLOUD),
    ("POST", "/api/experimental/web_fetch", R.CLOUD),
    ("POST", "/api/pull", R.PULL),
    ("POST", "/api/create", R.WRITE),
    ("POST", "/api/copy", R.WRITE),
    ("HEAD", "/api/blobs/sha256:00", R.BLOB),
    ("POST", "/api/blobs/sha256:00", R.BLOB),
    ("DELETE", "/api/delete", R.DELETE),
    ("POST", "/api/push", R.PUSH),
    ("POST", "/api/me", R.ACCOUNT),
    ("POST", "/api/signout", R.ACCOUNT),
    ("DELETE", "/api/user/keys/abc", R.ACCOUNT),
]
rows = st.sampled_from([(method.encode(), path.encode(), found) for method, path, found in TABLE])


def class_of(method: str, target: str) -> RouteClass:
    return route(method.encode(), target.encode()).route_class


@each_of(("method", "path", "expected"), TABLE)
def test_the_class_of_a_request(method: str, path: str, expected: RouteClass) -> None:
    assert class_of(method, path) is expected
    assert class_of(method, path + "?stream=false") is expected
    assert class_of(method, path + "?") is expected


@each_of(
    ("method", "target"),
    [
        ("GET", "/anything"),
        ("HEAD", "/anything"),
        ("GET", "/metrics"),
        ("GET", "/api"),
        ("GET", "/api/"),
        ("GET", "/v1"),
        ("GET", "/api/tags/x"),
        ("GET", "/api/./tags"),
        ("GET", "/api/x/../tags"),
        ("GET", "/api/%2e%2e/api/tags"),
        ("GET", "/API/TAGS"),
        ("GET", "/api/tags%20"),
        ("GET", "/api/tags%00"),
        ("GET", "/api/tags%3Fx"),
        ("GET", "/api/tags;x=y"),
        ("GET", "/api/tags#x"),
        ("GET", "/api/%2574ags"),
        ("GET", "/api%252Ftags"),
        ("GET", "/v1/models/a/b"),
        ("GET", "/v1/models/a%2Fb"),
        ("POST", "/api/blobs/"),
        ("POST", "/api/blobs/a/b"),
        ("POST", "/api/chat/completions"),
        ("DELETE", "/api/user/keys/"),
        ("GET", "/api/chat"),
        ("HEAD", "/api/chat"),
        ("PUT", "/api/chat"),
        ("POST", "/"),
        ("POST", "/api/tags"),
        ("POST", "/api/delete"),
        ("GET", ""),
        ("GET", "*"),
        ("GET", "?/api/tags"),
        ("GET", "api/tags"),
        ("GET", "http://gate/api/tags"),
        ("CONNECT", "gate:443"),
        ("OPTIONS", "/api/chat"),
        ("TRACE", "/"),
        ("PATCH", "/api/chat"),
    ],
)
def test_everything_else_is_unknown(method: str, target: str) -> None:
    assert class_of(method, target) is RouteClass.UNKNOWN


@each_of(
    ("method", "target", "plain"),
    [
        (b"GET", b"//api/tags", b"/api/tags"),
        (b"GET", b"/api//tags?x", b"/api/tags"),
        (b"GET", b"/api/tags/", b"/api/tags"),
        (b"GET", b"/api/tags%2F", b"/api/tags"),
        (b"POST", b"///api/chat//", b"/api/chat"),
        (b"POST", b"/v1//messages", b"/v1/messages"),
        (b"GET", b"/v1/models/", b"/v1/models"),
        (b"GET", b"/v1/models//m/", b"/v1/models/m"),
        (b"GET", b"//", b"/"),
    ],
)
def test_slashes_too_many_change_nothing(method: bytes, target: bytes, plain: bytes) -> None:
    """Ollama redirects them to the path without: what is judged is that."""
    assert route(method, target) == route(method, plain)
    assert route(method, target).path == plain


@each_of(
    ("path", "served"),
    [
        (b"/api/chat", [b"POST"]),
        (b"//api/chat/", [b"POST"]),
        (b"/", [b"GET", b"HEAD"]),
        (b"/v1/models/m", [b"GET", b"HEAD"]),
        (b"/api/nothing", []),
        (b"", []),
    ],
)
def test_the_methods_of_a_path(path: bytes, served: list[bytes]) -> None:
    assert sorted(methods(path)) == served


@each_of(
    ("path", "similar"),
    [
        (b"/chat/completions", [b"/v1/chat/completions"]),
        (b"/v1/v1/chat/completions", [b"/v1/chat/completions"]),
        (b"/v1/api/chat", [b"/api/chat"]),
        (b"/api/v1/messages", [b"/v1/messages"]),
        (b"/ollama/api/tags/", [b"/api/tags"]),
        (b"/API/Chat", [b"/api/chat"]),
        (b"/api/./chat", [b"/api/chat"]),
        (b"/api/../api/chat", [b"/api/chat"]),
        (b"/embeddings", [b"/v1/embeddings", b"/api/embeddings"]),
        (b"/", []),
        (b"/api", []),
        (b"/v1", []),
        (b"/xapi/chat", []),
        (b"/api/chatter", []),
        (b"", []),
        (b"*", []),
        (b"/\xff\x00", []),
    ],
)
def test_the_path_that_was_meant(path: bytes, similar: list[bytes]) -> None:
    assert set(similar_paths(path)) == set(similar)


@given(rows, st.text(max_size=8).map(str.encode))
def test_an_unknown_method_makes_the_class_unknown(row: tuple[bytes, bytes, RouteClass], method: bytes) -> None:
    if method not in (b"GET", b"HEAD", b"POST", b"DELETE"):
        assert route(method, row[1]).route_class is RouteClass.UNKNOWN


@given(rows)
def test_a_method_has_a_case(row: tuple[bytes, bytes, RouteClass]) -> None:
    assert route(row[0].lower(), row[1]).route_class is RouteClass.UNKNOWN


@given(rows, st.data())
def test_a_percent_encoded_path_is_the_decoded_one(row: tuple[bytes, bytes, RouteClass], data: st.DataObject) -> None:
    method, path, _ = row
    forms = [data.draw(st.sampled_from([b"%c" % byte, b"%%%02x" % byte, b"%%%02X" % byte])) for byte in path]
    assert route(method, b"".join(forms)) == route(method, path)


@given(rows, st.binary(max_size=20))
def test_a_query_changes_nothing(row: tuple[bytes, bytes, RouteClass], query: bytes) -> None:
    assert route(row[0], row[1] + b"?" + query) == route(row[0], row[1])


@given(st.binary(max_size=8) | st.sampled_from([b"GET", b"POST"]), st.binary(max_size=40))
def test_any_bytes_have_a_route(method: bytes, target: bytes) -> None:
    assert isinstance(route(method, target), Route)


@given(st.sampled_from([b"GET", b"HEAD", b"POST", b"DELETE"]), st.from_regex(rb"/[a-z0-9_%./:-]{1,20}", fullmatch=True))
def test_nothing_is_health_but_two_paths(method: bytes, target: bytes) -> None:
    """What is called health may be let through for monitors one day."""
    found = route(method, target)
    assert found.route_class is not RouteClass.HEALTH or found.path in (b"/", b"/api/version")


@each_of(
    ("path", "expected"),
    [
        (b"/api/chat", Dialect.OLLAMA),
        (b"/", Dialect.OLLAMA),
        (b"", Dialect.OLLAMA),
        (b"*", Dialect.OLLAMA),
        (b"/v1", Dialect.OLLAMA),
        (b"/v10/models", Dialect.OLLAMA),
        (b"/api/v1/models", Dialect.OLLAMA),
        (b"/V1/models", Dialect.OLLAMA),
        (b"/\xff\xfe", Dialect.OLLAMA),
        (b"/v1/", Dialect.OPENAI),
        (b"/v1/chat/completions", Dialect.OPENAI),
        (b"/v1/anything", Dialect.OPENAI),
        (b"/v1/messagesque", Dialect.OPENAI),
        (b"/v1/messages", Dialect.ANTHROPIC),
        (b"/v1/messages/count_tokens", Dialect.ANTHROPIC),
    ],
)
def test_whose_words_an_error_is_put_in(path: bytes, expected: Dialect) -> None:
    assert dialect(path) is expected
    assert route(b"BREW", path + b"?x").dialect is expected


def test_the_path_is_decoded_once_and_without_its_query() -> None:
    assert route(b"GET", b"/%61%2520%ff?%61").path == b"/a%20\xff"


WITHOUT = {
    "usage": {b"/v1/messages/count_tokens"},
    "conversation": {
        *(b"/v1/audio/transcriptions", b"/v1/messages/count_tokens"),
        *(b"/api/embed", b"/api/embeddings", b"/v1/embeddings"),
    },
}
"""Routes whose answers have no such part."""


def test_every_route_that_answers_has_all_of_a_row() -> None:
    rows = [found for found in _ROUTES.values() if found.route_class in (R.INFER, R.EMBED)]
    assert len(rows) == 11
    assert all(row.models for row in rows)
    assert {row.path for row in rows if row.usage is NO_USAGE} == WITHOUT["usage"]
    assert {row.path for row in rows if row.conversation is None} == WITHOUT["conversation"]
