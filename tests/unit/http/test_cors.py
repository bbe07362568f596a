"""Which pages may talk to the gate, and what a browser is told."""

from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.http.cors import EXPOSED, check_origin, preflight, response_fields, strip
from ollama_auth.http.head import Fields, values
from ollama_auth.http.responses import Answer
from tests.harness.cases import each_of

PAGE = b"https://page.example"
PAGES = ("https://page.example", "http://localhost:3000")


def preflight_fields(origin: bytes = PAGE, headers: bytes | None = b"authorization,content-type") -> Fields:
    more = ((b"Access-Control-Request-Headers", headers),) if headers is not None else ()
    return ((b"Host", b"gate"), (b"Origin", origin), (b"Access-Control-Request-Method", b"POST"), *more)


def answer(fields: Fields, origins: tuple[str, ...] = PAGES) -> Answer:
    found = preflight(b"OPTIONS", fields, origins)
    assert found
    return found


def allowed(fields: Fields) -> list[bytes]:
    return values(fields, b"access-control-allow-origin")


# The option.


@each_of(
    "origin",
    [
        *(
            "https://page.example",
            "http://localhost",
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "http://[::1]:3000",
        ),
        *("https://a.b-c.d_e.example:65535", "chrome-extension://abcdefgh", "tauri://localhost", "app://obsidian.md"),
        *("https://page.example:80", "http://page.example:443", "*", "null"),
    ],
)
def test_an_origin(origin: str) -> None:
    assert check_origin(origin) is None


@each_of(
    "origin",
    [
        *("", " ", "page.example", "//page.example", "https://", "https://page.example/", "https://page.example/path"),
        *("https://page.example?x", "https://page.example#x", "https://user@page.example", "https://Page.example"),
        *("HTTPS://page.example", "https://page.example:443", "http://page.example:80", "https://page.example:0"),
        *("https://page.example:", "https://page.example:65536", "https://page.example:x", "https://*.page.example"),
        *(
            "https://page.example:*",
            "https://page.example https://b",
            "https://page.example,https://b",
            "https://bücher.example",
        ),
        *(
            "Null",
            "NULL",
            "**",
            "https://page.example\n",
            " https://page.example",
            "https://[::1",
            "file:///x",
            "https://\x00",
        ),
    ],
)
def test_what_is_no_origin(origin: str) -> None:
    assert check_origin(origin)


# Preflights.


def test_a_preflight_of_a_listed_page_is_answered() -> None:
    assert answer(preflight_fields()) == Answer(
        204,
        (
            (b"access-control-allow-origin", PAGE),
            (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE"),
            (b"access-control-allow-headers", b"authorization,content-type"),
            (b"access-control-max-age", b"600"),
            (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        ),
        b"",
    )


@each_of(
    ("method", "fields"),
    [
        (b"GET", preflight_fields()),
        (b"POST", preflight_fields()),
        (b"options", preflight_fields()),
        (b"OPTIONS", ()),
        (b"OPTIONS", ((b"Origin", PAGE),)),
        (b"OPTIONS", ((b"Access-Control-Request-Method", b"POST"),)),
        (b"OPTIONS", preflight_fields(b"https://evil.example")),
        (b"OPTIONS", preflight_fields(b"https://page.example.evil.example")),
        (b"OPTIONS", preflight_fields(b"https://evil.page.example")),
        (b"OPTIONS", preflight_fields(b"http://page.example")),
        (b"OPTIONS", preflight_fields(b"https://page.example:8443")),
        (b"OPTIONS", preflight_fields(b"https://PAGE.example")),
        (b"OPTIONS", preflight_fields(b"https://page.example/")),
        (b"OPTIONS", preflight_fields(b"null")),
        (b"OPTIONS", preflight_fields(b"*")),
        (b"OPTIONS", preflight_fields(b"")),
        (b"OPTIONS", preflight_fields(b"\xff")),
        (b"OPTIONS", (*preflight_fields(), (b"origin", PAGE))),
        (b"OPTIONS", (*preflight_fields(), (b"access-control-request-method", b"GET"))),
        (b"OPTIONS", preflight_fields(PAGE + b", https://evil.example")),
    ],
)
def test_every_other_request_goes_on_and_needs_a_key(method: bytes, fields: Fields) -> None:
    assert preflight(method, fields, PAGES) is None


def test_without_origins_there_is_no_cors() -> None:
    assert preflight(b"OPTIONS", preflight_fields(), ()) is None
    assert response_fields(preflight_fields(), ()) == ()


@each_of("headers", [None, b"", b",", b"a b", b"a,,b", b"x\r\ny", b"a;b", b"\xff", b"authorization,"])
def test_header_names_that_are_none_are_not_granted(headers: bytes | None) -> None:
    assert not values(answer(preflight_fields(headers=headers)).fields, b"access-control-allow-headers")


@each_of("headers", [b"authorization", b"Authorization, Content-Type", b"x-stainless-os,x-api-key"])
def test_the_headers_a_page_asks_for_are_granted(headers: bytes) -> None:
    """What the gate does not forward goes nowhere, whoever may send it."""
    assert values(answer(preflight_fields(headers=headers)).fields, b"access-control-allow-headers") == [headers]


# Answers.


@each_of(
    ("origins", "origin", "expected"),
    [
        (PAGES, PAGE, [PAGE]),
        (PAGES, b"http://localhost:3000", [b"http://localhost:3000"]),
        (PAGES, b"https://evil.example", []),
        (PAGES, b"null", []),
        (("*",), b"https://anything.example", [b"*"]),
        (("*",), b"null", []),
        (("*",), b"*", [b"*"]),
        (("*", "null"), b"null", [b"null"]),
        (("null",), b"null", [b"null"]),
        (("null",), PAGE, []),
        (("*", PAGES[0]), PAGE, [PAGE]),
    ],
)
def test_who_may_read_an_answer(origins: tuple[str, ...], origin: bytes, expected: list[bytes]) -> None:
    fields = response_fields(((b"ORIGIN", origin),), origins)
    assert allowed(fields) == expected
    assert values(fields, b"access-control-expose-headers") == ([EXPOSED] if expected else [])
    assert values(fields, b"vary") == [b"Origin"]


@each_of("origins", [PAGES, ("*",), ("null",)])
@each_of("fields", [(), ((b"Host", b"gate"),), ((b"Origin", PAGE), (b"Origin", PAGE))])
def test_an_answer_to_no_page_says_all_the_same_that_it_matters(origins: tuple[str, ...], fields: Fields) -> None:
    assert response_fields(fields, origins) == ((b"vary", b"Origin"),)


texts = st.sampled_from([b"origin", b"Origin", b"null", b"*", PAGE, b"access-control-request-method", b"POST", b"\xff"])
anything = st.lists(st.tuples(texts, texts), max_size=4).map(tuple)


@given(anything, st.lists(st.sampled_from(["*", "null", *PAGES]), max_size=3))
def test_credentials_are_never_allowed_and_only_a_sent_and_listed_origin_is(fields: Fields, origins: list[str]) -> None:
    answered = preflight(b"OPTIONS", fields, origins)
    for told in (response_fields(fields, origins), answered.fields if answered else ()):
        assert b"access-control-allow-credentials" not in dict(told)
        assert all(b"\r" not in value and b"\n" not in value for _, value in told)
        for value in allowed(told):
            assert value == b"*" or value in values(fields, b"origin")
            assert value.decode() in origins
    assert not origins or response_fields(fields, origins)


# Ollama's own.


@each_of(
    ("fields", "expected"),
    [
        ((), ()),
        (((b"Content-Type", b"a"),), ((b"Content-Type", b"a"),)),
        (((b"Access-Control-Allow-Origin", b"*"), (b"ACCESS-CONTROL-MAX-AGE", b"1"), (b"A", b"b")), ((b"A", b"b"),)),
        (((b"Vary", b"Origin"),), ()),
        (
            (
                (b"Vary", b"Origin"),
                (b"Vary", b"Access-Control-Request-Method"),
                (b"vary", b"Access-Control-Request-Headers"),
            ),
            (),
        ),
        (((b"Vary", b"Accept, origin"), (b"A", b"b")), ((b"A", b"b"), (b"vary", b"Accept"))),
        (((b"Vary", b"Accept"), (b"vary", b"accept,Accept-Encoding ,")), ((b"vary", b"Accept, Accept-Encoding"),)),
        (((b"Vary", b"*"),), ((b"vary", b"*"),)),
    ],
)
def test_ollamas_own_cors_is_taken_out(fields: Fields, expected: Fields) -> None:
    assert strip(fields) == expected
    assert strip(expected) == expected


@given(st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=6)), max_size=5).map(tuple))
def test_other_fields_stay_as_they_are(fields: Fields) -> None:
    assert strip(fields) == fields
