"""What goes upstream is listed; a credential goes nowhere, in no form."""

import re
from collections.abc import Collection

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ollama_auth.auth.forwarding import (
    FORWARDED,
    MASKED_PATH,
    MAX_SHOWN,
    NEVER,
    HeaderNameError,
    clean_target,
    extend,
    mask_path,
    split,
    without,
)
from ollama_auth.http.head import Fields

KEY = b"sk-ollama-0123456789abcdef"
URL_KEY = b"ab+/cd==ef&gh?ij%41kl;mn"
"""A key with all the characters that mean something in a URL."""
CREDENTIALS = {b"authorization", b"proxy-authorization", b"x-api-key"}
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"http2-settings"}
FRAMING = {b"content-length", b"transfer-encoding"}


@pytest.mark.parametrize(
    "name",
    [
        *("Accept", "Accept-Encoding", "Content-Type", "Content-Encoding", "Content-Length", "Transfer-Encoding"),
        *("User-Agent", "anthropic-version", "anthropic-beta", "CONTENT-TYPE"),
    ],
)
def test_what_ollama_needs_is_forwarded_as_it_came(name: str) -> None:
    fields = ((name.encode(), b"Value, as it is"),)
    assert split(fields, extend([])) == (fields, ())


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "Proxy-Authorization", "X-Api-Key", "Api-Key", "Cookie", "Authorization_", "Content_Length"),
        *("Origin", "Referer", "Forwarded", "Via", "X-Forwarded-For", "X-Real-IP", "X-OpenWebUI-User-Email"),
        *("Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Upgrade", "HTTP2-Settings", "X-HTTP-Method-Override"),
    ],
)
def test_what_nobody_listed_is_stripped_and_named(name: str) -> None:
    assert split(((name.encode(), KEY),), extend([])) == ((), (name.lower(),))


@pytest.mark.parametrize("name", ["Host", "Connection", "Expect"])
def test_what_every_connection_has_is_stripped_without_a_word(name: str) -> None:
    assert split(((name.encode(), b"x"),), extend([])) == ((), ())


@pytest.mark.parametrize("name", [KEY, KEY.upper(), b"a-key-without-prefix"])
def test_a_key_that_was_sent_as_the_name_of_a_header_is_not_told(name: bytes) -> None:
    assert split(((name, b"Authorization"),), extend([]), only_key) == ((), ("***",))


def test_order_and_repetition_are_kept_and_a_name_is_told_once() -> None:
    fields = ((b"Cookie", b"a"), (b"Accept", b"1"), (b"COOKIE", b"b"), (b"Via", b"c"), (b"accept", b"2"))
    assert split(fields, extend([])) == (((b"Accept", b"1"), (b"accept", b"2")), ("cookie", "via"))


@pytest.mark.parametrize("connection", [b"close, X-Mine", b"x-mine", b" , X-MINE\t,", b"keep-alive,x-mine,accept"])
def test_what_a_client_says_belongs_to_its_connection_is_stripped(connection: bytes) -> None:
    """RFC 9110 section 7.6.1."""
    fields = ((b"X-Mine", b"1"), (b"Connection", b"close"), (b"Connection", connection), (b"User-Agent", b"me"))
    assert split(fields, extend(["x-mine"])) == (((b"User-Agent", b"me"),), ("x-mine",))


@pytest.mark.parametrize("name", sorted(FRAMING))
def test_no_client_can_have_the_framing_of_a_body_taken_away(name: bytes) -> None:
    fields = ((b"Connection", name), (name, b"5"))
    assert split(fields, extend([])) == (((name, b"5"),), ())


def test_an_operator_adds_to_the_list() -> None:
    allowed = extend([" X-Trace ", "cookie"])
    assert allowed == FORWARDED | {b"x-trace", b"cookie"}
    assert split(((b"X-TRACE", b"1"),), allowed) == (((b"X-TRACE", b"1"),), ())


@pytest.mark.parametrize("name", sorted(NEVER | {"AUTHORIZATION", " x-api-key\t", "\N{KELVIN SIGN}eep-alive"}))
def test_what_an_operator_can_not_add(name: str) -> None:
    with pytest.raises(HeaderNameError, match="is never forwarded"):
        extend(["accept", name])


@pytest.mark.parametrize(
    "name", ["", " ", "two words", "x:y", "x\r\ny", "x,y", "ü", "x\0", "(x)", "authori\u017fation", "*/*"]
)
def test_what_is_not_the_name_of_a_header(name: str) -> None:
    with pytest.raises(HeaderNameError, match="is not the name of a header") as caught:
        extend([name])
    assert "\n" not in str(caught.value)


cases = st.sampled_from([bytes.lower, bytes.upper, bytes.title])
known_names = st.builds(
    lambda name, case: case(name), st.sampled_from(sorted(FORWARDED | CREDENTIALS | HOP_BY_HOP | {b"x-mine"})), cases
)
field_lists = st.lists(
    st.tuples(known_names | st.binary(max_size=6), known_names | st.binary(max_size=6)), max_size=6
).map(tuple)
operators = st.lists(st.sampled_from([*sorted(NEVER), "x-mine", "Cookie"]) | st.text(max_size=6), max_size=4)


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


@pytest.mark.parametrize(
    "target",
    ["/", "/api/chat", "/api/chat?", "/?a", "/?a=b&c=d&a=b", "/?&&", "/?=x", "/?a=%20+%zz%", "/%", "//?/?", "*"],
)
def test_a_target_without_a_secret_is_left_as_it_is(target: str) -> None:
    assert clean_target(target.encode(), KEY) == (target.encode(), ())


@pytest.mark.parametrize(
    ("target", "cleaned", "removed"),
    [
        ("/?key=x", "/", ("?key",)),
        ("/api/tags?a=b&api_key=x&c=d", "/api/tags?a=b&c=d", ("?api_key",)),
        ("/?API-KEY=x&ApiKey=y", "/", ("?api-key", "?apikey")),
        ("/?token&a", "/?a", ("?token",)),
        ("/?access%5Ftoken=x", "/", ("?access_token",)),
        ("/?%61uth=x&b=", "/?b=", ("?auth",)),
        ("/?a=" + KEY.decode(), "/", ("?(the key)",)),
        (f"/?{KEY.decode()}&a", "/?a", ("?(the key)",)),
        (f"/?a=Bearer+{KEY.decode()}x&b", "/?b", ("?(the key)",)),
        ("/?a=" + "".join(f"%{byte:02x}" for byte in KEY) + "&b=1", "/?b=1", ("?(the key)",)),
        ("/?a=%73k%2Dollama%2d0123456789abcdef", "/", ("?(the key)",)),
        (f"/?a=%E2%82{KEY.decode()}", "/", ("?(the key)",)),
    ],
)
def test_a_parameter_that_is_a_credential_is_removed_and_named(
    target: str, cleaned: str, removed: tuple[str, ...]
) -> None:
    assert clean_target(target.encode(), KEY) == (cleaned.encode(), removed)


@pytest.mark.parametrize(
    "path", ["/{}", "/{}/api/chat", "/x{}x", "/%73k-ollama-0123456789abcdef", "/sk%2Dollama-0123456789abcde%66/?a=b"]
)
def test_a_key_in_the_path_is_an_error(path: str) -> None:
    with pytest.raises(ValueError, match="the key is in the path"):
        clean_target(path.format(KEY.decode()).encode(), KEY)


@pytest.mark.parametrize("target", [b"/?a=ab%2B%2Fcd", b"/?a=ab+/cd", b"/?a=ab%2b/cd"])
def test_a_plus_in_a_key_is_no_space(target: bytes) -> None:
    assert clean_target(target, b"ab+/cd") == (b"/", ("?(the key)",))


@pytest.mark.parametrize("target", [b"/" + URL_KEY, b"/?" + URL_KEY, b"/?a=" + URL_KEY + b"&b", b"/%61" + URL_KEY])
def test_a_key_across_the_borders_of_a_query_is_an_error(target: bytes) -> None:
    with pytest.raises(ValueError, match="the key is in the path"):
        clean_target(target, URL_KEY)


@pytest.mark.parametrize("key", [b"api", b"chat", b"a", b"/", b"v1"])
def test_a_short_key_is_no_reason_to_refuse_every_path_it_is_part_of(key: bytes) -> None:
    """A key of fewer than 16 characters works, with a warning."""
    assert clean_target(b"/api/chat", key) == (b"/api/chat", ())
    assert clean_target(b"/v1/messages?beta=true", key)[0].startswith(b"/v1/messages")


def percent_encoded(data: st.DataObject, secret: bytes, keep: bytes = b"") -> bytes:
    """The secret with any of its bytes percent-encoded, and always those that would mean something else."""
    pieces = []
    for byte in secret:
        forms = [b"%%%02x" % byte, b"%%%02X" % byte]
        if byte not in b"#%?&" or byte in keep:
            forms.append(bytes([byte]))
        pieces.append(data.draw(st.sampled_from(forms)))
    return b"".join(pieces)


secrets = st.text([chr(code) for code in range(0x21, 0x7F)], min_size=16, max_size=24).map(str.encode)
harmless = st.sampled_from([b"", b"/api/chat", b"/%73k-", b"/a+b", b"/%"])
parameters = st.sampled_from([b"", b"a=b", b"stream=false", b"key=x", b"a=%73k-", b"=", b"%"])


def decoded(target: bytes) -> bytes:
    """What anyone who reads this target may make of it: RFC 3986, not this package's own words."""
    return re.sub(rb"%([0-9a-fA-F]{2})", lambda found: bytes.fromhex(found[1].decode()), target)


@given(st.data(), secrets, harmless, parameters, parameters)
def test_a_secret_in_a_query_is_removed_in_any_percent_encoding(
    data: st.DataObject, secret: bytes, path: bytes, before: bytes, after: bytes
) -> None:
    assume(secret not in decoded(path + before + after))
    written = data.draw(st.sampled_from([b"", b"a=", b"a=Bearer+"])) + percent_encoded(data, secret)
    cleaned, removed = clean_target(path + b"?" + b"&".join([before, written, after]), secret)
    assert secret not in decoded(cleaned)
    assert removed
    assert secret.decode() not in "".join(removed)


@given(st.data(), secrets, harmless, harmless, parameters)
def test_a_secret_in_a_path_is_an_error_in_any_percent_encoding(
    data: st.DataObject, secret: bytes, before: bytes, after: bytes, query: bytes
) -> None:
    target = before + b"/" + percent_encoded(data, secret, keep=b"&") + after + b"?" + query
    with pytest.raises(ValueError, match="the key is in the path"):
        clean_target(target, secret)


@given(st.data(), secrets, st.text("/?&=%+a1", max_size=12), st.text("/?&=%+a1", max_size=12))
def test_a_secret_anywhere_is_gone_or_an_error(data: st.DataObject, secret: bytes, before: str, after: str) -> None:
    target = before.encode() + data.draw(st.sampled_from([secret, percent_encoded(data, secret)])) + after.encode()
    try:
        cleaned, _ = clean_target(target, secret)
    except ValueError:
        return
    assert secret not in cleaned
    assert secret not in decoded(cleaned)


@given(st.text("/?&=%+;:@ak41", max_size=30).map(str.encode), secrets)
def test_cleaning_a_clean_target_changes_nothing(target: bytes, secret: bytes) -> None:
    assume(secret not in target and secret not in decoded(target))
    cleaned, _ = clean_target(target, secret)
    assert clean_target(cleaned, secret) == (cleaned, ())


# The path, as a log shows it.


def test_a_field_that_holds_the_key_under_another_name_is_dropped() -> None:
    fields = ((b"User-Agent", b"me/1 " + KEY), (b"Accept", b"*/*"))
    assert without(fields, KEY) == ((b"Accept", b"*/*"),)
    assert without(fields, b"me") == fields


def only_key(part: bytes) -> str | None:
    return "anna" if part in (b"a-key-without-prefix", b"YS1rZXk+YQ==", b"p@ss&word=!") else None


@pytest.mark.parametrize(
    ("path", "masked"),
    [
        (b"/", b"/"),
        (b"/api/chat", b"/api/chat"),
        (b"//", b"//"),
        (b"", b""),
        (b"/" + KEY + b"/api/chat", b"/***/api/chat"),
        (b"/api/sk-", b"/api/***"),
        (b"/a-key-without-prefix", b"/***"),
        (b"/v1/a-key-without-prefix/", b"/v1/***/"),
        (b"/api/chat&api_key=" + KEY, b"/api/chat&api_key=***"),
        (b"/api/chat;key=a-key-without-prefix;x", b"/api/chat;key=***;x"),
        (b"/user:" + KEY + b"@gate", b"/user:***@gate"),
        (b"/Bearer " + KEY, b"/Bearer ***"),
        (b"/x=YS1rZXk+YQ==/x", b"/x=***/x"),
        (b"/p@ss&word=!/x", b"/***/x"),
        (b"/\n" + KEY, b"/\n***"),
        (b'/"a-key-without-prefix"', b'/"***"'),
    ],
)
def test_a_key_in_a_path_is_masked_where_the_path_is_shown(path: bytes, masked: bytes) -> None:
    assert mask_path(path, only_key) == masked


def test_an_endless_path_is_cut_and_costs_no_more_than_what_is_shown() -> None:
    asked: list[bytes] = []
    assert mask_path(b"/a" * 5000, asked.append) == b"/a" * (MAX_SHOWN // 2)
    assert len(asked) <= MAX_SHOWN


def test_a_gate_without_keys_masks_what_looks_like_one() -> None:
    assert mask_path(b"/api/" + KEY, None) == b"/api/***"
    assert mask_path(MASKED_PATH, None) == MASKED_PATH


@given(st.binary(max_size=30), st.binary(max_size=30), st.sampled_from(b"/?&=;:@, \"'\n"))
def test_no_surroundings_save_a_key_from_being_masked(before: bytes, after: bytes, border: int) -> None:
    path = before + bytes([border]) + KEY + bytes([border]) + after
    assert KEY not in mask_path(path, only_key)
