"""What the gate itself answers: one line of JSON that the client's library understands."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.http.responses import USED_UP, Answer, challenges, error, render, retry_after
from ollama_auth.ollama_api.routes import Dialect
from tests.harness.cases import each_of

STATUSES = (400, 401, 403, 404, 405, 408, 413, 414, 417, 421, 426, 429, 431, 502, 503, 504, 505)
statuses = st.sampled_from(STATUSES)
dialects = st.sampled_from(list(Dialect))


def content(answer: Answer) -> Any:
    return json.loads(answer.body)


@each_of(
    ("status", "dialect", "expected"),
    [
        (401, Dialect.OLLAMA, {"error": "no"}),
        (503, Dialect.OLLAMA, {"error": "no"}),
        (401, Dialect.OPENAI, {"message": "no", "type": "authentication_error", "param": None, "code": "why"}),
        (403, Dialect.OPENAI, {"message": "no", "type": "permission_error", "param": None, "code": "why"}),
        (429, Dialect.OPENAI, {"message": "no", "type": "rate_limit_error", "param": None, "code": "why"}),
        (400, Dialect.OPENAI, {"message": "no", "type": "invalid_request_error", "param": None, "code": "why"}),
        (502, Dialect.OPENAI, {"message": "no", "type": "api_error", "param": None, "code": "why"}),
        (401, Dialect.ANTHROPIC, {"type": "authentication_error", "message": "no"}),
        (403, Dialect.ANTHROPIC, {"type": "permission_error", "message": "no"}),
        (413, Dialect.ANTHROPIC, {"type": "request_too_large", "message": "no"}),
        (429, Dialect.ANTHROPIC, {"type": "rate_limit_error", "message": "no"}),
        (400, Dialect.ANTHROPIC, {"type": "invalid_request_error", "message": "no"}),
        (503, Dialect.ANTHROPIC, {"type": "overloaded_error", "message": "no"}),
        (502, Dialect.ANTHROPIC, {"type": "api_error", "message": "no"}),
    ],
)
def test_the_shape_of_an_error_in_each_dialect(status: int, dialect: Dialect, expected: dict[str, object]) -> None:
    whole = {
        Dialect.OLLAMA: expected,
        Dialect.OPENAI: {"error": expected},
        Dialect.ANTHROPIC: {"type": "error", "error": expected},
    }
    assert content(error("1", status, "no", dialect, code="why")) == whole[dialect]


@given(statuses, st.text(), dialects)
def test_any_error_is_one_line_of_json_with_its_length(status: int, message: str, dialect: Dialect) -> None:
    answer = error("1", status, message, dialect)
    assert (
        message in json.dumps(content(answer), ensure_ascii=False)
        or not message.isprintable()
        or '"' in message
        or "\\" in message
    )
    assert answer.body.endswith(b"}\n")
    assert answer.body.isascii()
    assert answer.body[:-1].decode().isprintable()
    assert dict(answer.fields)[b"content-length"] == b"%d" % len(answer.body)


@given(statuses, dialects)
def test_no_answer_is_kept_by_a_cache_or_names_a_product(status: int, dialect: Dialect) -> None:
    answer = error("1", status, "no", dialect)
    fields = dict(answer.fields)
    assert fields[b"cache-control"] == b"no-store"
    assert fields[b"content-type"] == b"application/json"
    assert not {b"server", b"via", b"x-powered-by", b"date"} & set(fields)
    assert b"mitm" not in render(answer).lower()


@given(statuses, dialects)
def test_names_of_header_fields_are_in_lower_case_for_http2(status: int, dialect: Dialect) -> None:
    answer = error("1", status, "no", dialect, retry_after(5))
    assert all(name == name.lower() for name, _ in answer.fields)
    assert not {b"connection", b"transfer-encoding", b"keep-alive"} & {name for name, _ in answer.fields}


@each_of(
    ("sent", "challenge"), [(False, b'Bearer realm="ollama"'), (True, b'Bearer realm="ollama", error="invalid_token"')]
)
def test_a_challenge_says_whether_a_token_was_sent(sent: bool, challenge: bytes) -> None:
    assert challenges(sent=sent, basic=False) == ((b"www-authenticate", challenge),)
    basic = (b"www-authenticate", b'Basic realm="ollama"')
    assert challenges(sent=sent, basic=True) == (basic, (b"www-authenticate", challenge))


@given(statuses, dialects)
def test_every_answer_names_its_request(status: int, dialect: Dialect) -> None:
    """Anthropic's libraries read a field of their own."""
    names = {name for name, value in error("1a", status, "no", dialect).fields if value == b"1a"}
    assert names == {b"x-request-id"} | ({b"request-id"} if dialect is Dialect.ANTHROPIC else set())


def test_a_used_up_quota_in_the_words_of_openai() -> None:
    said = content(error("1", 429, "no", Dialect.OPENAI, code=USED_UP))["error"]
    assert (said["type"], said["code"]) == ("insufficient_quota", "insufficient_quota")
    assert content(error("1", 429, "no", Dialect.ANTHROPIC, code=USED_UP))["error"]["type"] == "rate_limit_error"


def test_the_ollama_command_line_is_never_sent_to_sign_in() -> None:
    assert set(content(error("1", 401, "no", Dialect.OLLAMA, code="x"))) == {"error"}


def test_head_is_answered_with_the_length_of_a_body_and_without_it() -> None:
    answer = error("1", 401, "no")
    assert answer.to(b"HEAD") == Answer(401, answer.fields, b"")
    assert answer.to(b"GET") is answer
    assert answer.to(b"head") is answer


def test_when_to_try_again() -> None:
    assert retry_after(5) == (b"retry-after", b"5")


def test_an_answer_as_http_1_ends_its_connection() -> None:
    assert render(error("1", 503, "try later", Dialect.OLLAMA, retry_after(5))) == (
        b"HTTP/1.1 503 Service Unavailable\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: 22\r\n"
        b"Cache-Control: no-store\r\n"
        b"X-Request-Id: 1\r\n"
        b"Retry-After: 5\r\n"
        b"Connection: close\r\n"
        b"\r\n"
        b'{"error":"try later"}\n'
    )


def test_an_answer_after_which_the_connection_stays() -> None:
    answer = error("1", 401, "no")
    assert render(answer, close=False) == render(answer).replace(b"Connection: close\r\n", b"")


@given(statuses, st.text(), dialects)
def test_an_answer_is_one_response_whatever_it_says(status: int, message: str, dialect: Dialect) -> None:
    """No text can end a head early, or begin a second response."""
    raw = render(error("1", status, message, dialect))
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d" % len(body) in head.split(b"\r\n")
    assert b"\r" not in body
    assert body.count(b"\n") == 1


@each_of("status", STATUSES)
def test_every_status_in_use_has_a_phrase(status: int) -> None:
    assert render(error("1", status, "no")).partition(b"\r\n")[0].split(b" ", 2)[2]
