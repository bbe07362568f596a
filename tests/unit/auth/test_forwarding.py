"""What goes upstream is listed; a credential goes nowhere, in no form."""

from collections.abc import Collection

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_auth.auth.forwarding import (
    FORWARDED,
    NEVER,
    HeaderNameError,
    extend,
    split,
)
from ollama_auth.http.head import Fields
from tests.harness.cases import each_of

KEY = b"sk-ollama-0123456789abcdef"
URL_KEY = b"ab+/cd==ef&gh?ij%41kl;mn"
"""A key with all the characters that mean something in a URL."""
CREDENTIALS = {b"authorization", b"proxy-authorization", b"x-api-key"}
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"http2-settings"}
FRAMING = {b"content-length", b"transfer-encoding"}


@each_of(
    "name",
    [
        *("Accept", "Accept-Encoding", "Content-Type", "Content-Encoding", "Content-Length", "Transfer-Encoding"),
        *("User-Agent", "anthropic-version", "anthropic-beta", "CONTENT-TYPE"),
    ],
)
def test_what_ollama_needs_is_forwarded_as_it_came(name: str) -> None:
    fields = ((name.encode(), b"Value, as it is"),)
    assert split(fields, extend([])) == (fields, ())


@each_of(
    "name",
    [
        *("Authorization", "Proxy-Authorization", "X-Api-Key", "Api-Key", "Cookie", "Authorization_", "Content_Length"),
        *("Origin", "Referer", "Forwarded", "Via", "X-Forwarded-For", "X-Real-IP", "X-OpenWebUI-User-Email"),
        *("Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Upgrade", "HTTP2-Settings", "X-HTTP-Method-Override"),
    ],
)
def test_what_nobody_listed_is_stripped_and_named(name: str) -> None:
    assert split(((name.encode(), KEY),), extend([])) == ((), (name.lower(),))


@each_of("name", ["Host", "Connection", "Expect"])
def test_what_every_connection_has_is_stripped_without_a_word(name: str) -> None:
    assert split(((name.encode(), b"x"),), extend([])) == ((), ())


@each_of("name", [KEY, KEY.upper(), b"a-key-without-prefix", b"X-" + KEY])
def test_a_key_that_was_sent_as_the_name_of_a_header_is_not_told(name: bytes) -> None:
    assert split(((name, b"Authorization"),), extend([])) == ((), ("***",))


def test_order_and_repetition_are_kept_and_a_name_is_told_once() -> None:
    fields = ((b"Cookie", b"a"), (b"Accept", b"1"), (b"COOKIE", b"b"), (b"Via", b"c"), (b"accept", b"2"))
    assert split(fields, extend([])) == (((b"Accept", b"1"), (b"accept", b"2")), ("cookie", "via"))


@each_of("connection", [b"close, X-Mine", b"x-mine", b" , X-MINE\t,", b"keep-alive,x-mine,accept"])
def test_what_a_client_says_belongs_to_its_connection_is_stripped(connection: bytes) -> None:
    """RFC 9110 section 7.6.1."""
    fields = ((b"X-Mine", b"1"), (b"Connection", b"close"), (b"Connection", connection), (b"User-Agent", b"me"))
    assert split(fields, extend(["x-mine"])) == (((b"User-Agent", b"me"),), ("x-mine",))


@each_of("name", sorted(FRAMING))
def test_no_client_can_have_the_framing_of_a_body_taken_away(name: bytes) -> None:
    fields = ((b"Connection", name), (name, b"5"))
    assert split(fields, extend([])) == (((name, b"5"),), ())


SECRETS = {
    *("Cookie", "set-cookie", "Proxy-Authorization", "X-Original-Authorization", "api-key", "apikey", "X-Goog-Api-Key"),
    *("X-Auth-Token", "Private-Token", "X-Amz-Security-Token", "CF-Access-Client-Secret", "Cf-Access-Jwt-Assertion"),
    *("Ocp-Apim-Subscription-Key", "X-Forwarded-Access-Token", "x_password", "X-Auth-Key", "X-User-Credentials"),
}


def test_an_operator_adds_to_the_list() -> None:
    allowed = extend([" X-Trace ", "idempotency-key", "x-session-affinity", "x-auth-request-email"])
    assert allowed == FORWARDED | {b"x-trace", b"idempotency-key", b"x-session-affinity", b"x-auth-request-email"}
    assert split(((b"X-TRACE", b"1"),), allowed) == (((b"X-TRACE", b"1"),), ())


@each_of("name", sorted(NEVER | {"AUTHORIZATION", " x-api-key\t", "\N{KELVIN SIGN}eep-alive"} | SECRETS))
def test_what_an_operator_can_not_add(name: str) -> None:
    with pytest.raises(HeaderNameError, match="is never forwarded"):
        extend(["accept", name])


@each_of("name", ["", " ", "two words", "x:y", "x\r\ny", "x,y", "ü", "x\0", "(x)", "authori\u017fation", "*/*"])
def test_what_is_not_the_name_of_a_header(name: str) -> None:
    with pytest.raises(HeaderNameError, match="is not a valid header name") as caught:
        extend([name])
    assert "\n" not in str(caught.value)


cases = st.sampled_from([bytes.lower, bytes.upper, bytes.title])
known_names = st.builds(
    lambda name, case: case(name), st.sampled_from(sorted(FORWARDED | CREDENTIALS | HOP_BY_HOP | {b"x-mine"})), cases
)
field_lists = st.lists(
    st.tuples(known_names | st.binary(max_size=6), known_names | st.binary(max_size=6)), max_size=6
).map(tuple)
operators = st.lists(st.sampled_from([*sorted(NEVER), "x-mine", "Traceparent"]) | st.text(max_size=6), max_size=4)


def allowed_by(names: Collection[str]) -> frozenset[bytes]:
    try:
        return extend(names)
    except HeaderNameError:
        return FORWARDED


@given(field_lists, operators)
@example(((b"Connection", b"Accept"), (b"Accept", b"x")), [])
def test_no_credential_and_nothing_hop_by_hop_gets_through(fields: Fields, names: list[str]) -> None:
    """Whatever is sent, and whatever the operator wants forwarded."""
    kept, stripped = split(fields, allowed_by(names))
    sent = {name.lower() for name, _ in kept}
    listed = {token.strip().lower() for n, v in fields if n.lower() == b"connection" for token in v.split(b",")}
    assert not sent & (CREDENTIALS | HOP_BY_HOP | {b"host", b"expect"})
    assert not sent & (listed - FRAMING)
    assert not sent & {name.encode("latin-1", "replace") for name in stripped}
    assert [field for field in fields if field in kept] == list(kept)


@given(field_lists)
def test_the_names_of_what_is_stripped_are_text_without_values(fields: Fields) -> None:
    _, stripped = split(fields, FORWARDED)
    assert set(stripped) <= {name.lower().decode("ascii", "replace") for name, _ in fields} | {"***"}
    assert len(set(stripped)) == len(stripped)


# The target.
