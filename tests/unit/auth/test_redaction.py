"""A credential goes nowhere: not into a URL that goes upstream, a header field, or a log."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ollama_auth.auth.keys import SHORT
from ollama_auth.auth.redaction import (
    MASKED_PATH,
    MAX_SEARCHED,
    MAX_SHOWN,
    clean_target,
    mask_model,
    mask_name,
    mask_path,
    mask_value,
    may_hold_key,
    without,
)
from tests.harness.cases import each_of

KEY = b"sk-ollama-0123456789abcdef"
URL_KEY = b"ab+/cd==ef&gh?ij%41kl;mn"
"""A key with all the characters that mean something in a URL."""


@each_of(
    "target",
    ["/", "/api/chat", "/api/chat?", "/?a", "/?a=b&c=d&a=b", "/?&&", "/?=x", "/?a=%20+%zz%", "/%", "//?/?", "*"],
)
def test_a_target_without_a_secret_is_left_as_it_is(target: str) -> None:
    assert clean_target(target.encode(), KEY) == (target.encode(), ())


@each_of(
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


@each_of(
    "path", ["/{}", "/{}/api/chat", "/x{}x", "/%73k-ollama-0123456789abcdef", "/sk%2Dollama-0123456789abcde%66/?a=b"]
)
def test_a_key_in_the_path_is_an_error(path: str) -> None:
    with pytest.raises(ValueError, match="the key is in the path"):
        clean_target(path.format(KEY.decode()).encode(), KEY)


@each_of("target", [b"/?a=ab%2B%2Fcd", b"/?a=ab+/cd", b"/?a=ab%2b/cd"])
def test_a_plus_in_a_key_is_no_space(target: bytes) -> None:
    assert clean_target(target, b"ab+/cd") == (b"/", ("?(the key)",))


@each_of("target", [b"/" + URL_KEY, b"/?" + URL_KEY, b"/?a=" + URL_KEY + b"&b", b"/%61" + URL_KEY])
def test_a_key_across_the_borders_of_a_query_is_an_error(target: bytes) -> None:
    with pytest.raises(ValueError, match="the key is in the path"):
        clean_target(target, URL_KEY)


@each_of("key", [b"api", b"chat", b"a", b"/", b"v1"])
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


ALPHABETS = {
    "scripts/keys": b"sk-ollama-0123456789abcdef0123456789abcdef",
    "base64": b"aB3/xyz+Q9kLmN0pQrStUvWxYz012345==",
    "base64url": b"aB3_xyz-Q9kLmN0pQrStUvWxYz012345",
    "hex": b"0f1e2d3c4b5a69788796a5b4c3d2e1f0",
    "uuid": b"6f9619ff-8b86-d011-b42d-00cf4fc964ff",
    "ascii85": b"9jqo^BlbD-BleB1DJ+*+F(f,q/0JhKF<",
    "words": b"correct.horse.battery.staple",
    "marks": b"p@ss:word!with#marks$&=;,?|~'()*",
    "a path": b"/api/chat/api/chat/v1/models",
    "slashes": b"a/b/c/d/e/f/g/h/i/j",
    "as short as may be": b"0123456789abcdef",
    "percent": b"%41%42%43%44%45%46",
    "one letter": b"k" * 20,
}


def known(part: bytes) -> str | None:
    return "anna" if part in ALPHABETS.values() else None


def nobody(_: bytes) -> None:
    """Find the principal of a key: there is none."""


@each_of("path", ["/", "/api/chat", "//", "", "/v1/models/", "/v1/v1", "/api/experimental/web_search"])
def test_words_of_the_api_are_shown(path: str) -> None:
    assert mask_path(path.encode(), nobody) == path.encode()


@each_of(
    ("path", "masked"),
    [
        (b"/" + KEY + b"/api/chat", b"/***/api/chat"),
        (b"/ollama/proxy/api/chat", b"/***/api/chat"),
        (b"/v1/models/something-long", b"/v1/models/***"),
        (b"/api/chat&api_key=" + KEY, b"/api/***"),
        (b"/api/sk-", b"/api/***"),
        (b"/a/b/c/d/e/f/g/h/i/j/k", b"/***"),
        (b"/a-key", b"/a-key"),
        (b"/favicon.ico", b"/favicon.ico"),
        (b"/***", b"/***"),
        (b"http://elsewhere/api/chat", b"***//***/api/chat"),
    ],
)
def test_what_a_stranger_sends_besides_is_masked_unless_it_is_too_short_for_a_key(path: bytes, masked: bytes) -> None:
    assert mask_path(path, nobody) == masked


@each_of("path", [b"/v1/models/qwen2.5-coder:32b", b"/ollama/api/chat", b"/api/unknown/\xe2\x82"])
def test_who_is_known_may_show_more(path: bytes) -> None:
    assert mask_path(path, nobody, MAX_SEARCHED) == path


@each_of("key", [b"hunter2", b"a/b"])
def test_a_short_key_is_masked_where_it_is_all_that_stands_there(key: bytes) -> None:
    find = {b"hunter2": "anna"}.get
    assert (mask_path(b"/hunter2/api", find), mask_path(b"/hunter2", find)) == (b"/***/api", b"/***")


@each_of("most", [SHORT - 1, MAX_SEARCHED])
@each_of("around", ["/{}", "/{}/api/chat", "/v1/x={}", "/a{}b", "/v1/models/{}", "{}", "/api/{}/"])
@each_of("kind", [kind for kind in ALPHABETS if kind != "a path"])
def test_a_key_of_any_alphabet_in_a_path_is_masked(kind: str, around: str, most: int) -> None:
    path = around.encode().replace(b"{}", ALPHABETS[kind])
    assert ALPHABETS[kind] not in mask_path(path, known, most)


def test_no_path_costs_much() -> None:
    """Nothing is hashed for a long one, and no more than MAX_SHOWN bytes are looked at."""
    asked: list[bytes] = []
    for path in (b"/a" * 5000, b"/" + b"a" * 1000, b"/a-b" * 250, b"/a:" * 300):
        assert len(mask_path(path, asked.append)) < MAX_SHOWN
    assert asked == []
    for length in range(MAX_SEARCHED + 1):
        asked.clear()
        assert mask_path(b"/" + b"a" * (length - 1), asked.append, MAX_SEARCHED)
        assert len(asked) < 400
        assert length >= SHORT or len(asked) <= 3
    assert mask_path(MASKED_PATH, nobody) == MASKED_PATH


@given(st.binary(max_size=30), st.binary(max_size=30), st.sampled_from(list(ALPHABETS.values())))
def test_no_surroundings_save_a_key_from_being_masked(before: bytes, after: bytes, key: bytes) -> None:
    assume(key != ALPHABETS["a path"])
    for most in (SHORT - 1, MAX_SEARCHED):
        assert key not in mask_path(before + key + after, known, most)


# Other texts that a client chooses.


@each_of("kind", ALPHABETS)
def test_a_key_is_found_anywhere_in_a_short_text(kind: str) -> None:
    key = ALPHABETS[kind]
    for text in (key, b"x" + key, key + b"-1", b"req." + key + b".2", key * 3):
        assert may_hold_key(text, known)


@each_of("text", [b"0123-4567", b"a" * MAX_SEARCHED, b"task-1", b"", b"7f9619ff-8b86-d011-b42d-00cf4fc964f"])
def test_a_text_without_a_key(text: bytes) -> None:
    assert not may_hold_key(text, known)


@each_of("text", [b"a" * (MAX_SEARCHED + 1), b"sk-x", b"my-SK-x", b"Bearer.sk-"])
def test_what_can_not_be_searched_or_looks_like_a_key_counts_as_one(text: bytes) -> None:
    assert may_hold_key(text, nobody)


@each_of("kind", ALPHABETS)
def test_the_value_of_a_field_is_shown_without_long_words(kind: str) -> None:
    for value in (b"%s", b"me/1 %s", b"a;%sb", b"curl/8.5.0 (%s)", b"%s\xff"):
        assert ALPHABETS[kind] not in mask_value(value.replace(b"%s", ALPHABETS[kind]))


@each_of("value", [b"application/json", b"curl/8.5.0", b"ollama/0.5.1 (linux) Go/go1.22", b"*/*", b""])
def test_a_value_that_can_hold_no_key_is_shown(value: bytes) -> None:
    assert mask_value(value) == value


@each_of("kind", ALPHABETS)
def test_a_key_in_the_name_of_a_field_is_masked(kind: str) -> None:
    key = ALPHABETS[kind]
    for name in (key, b"X-" + key, b"x-stainless-" + key, b"sec-fetch-x-forwarded-" + key, key.upper()):
        assert mask_name(name) == "***"


@each_of("kind", ALPHABETS)
def test_a_key_that_was_sent_as_a_model_is_masked(kind: str) -> None:
    key = ALPHABETS[kind]
    for name in (key, b"x" + key, b"library/" + key + b":latest"):
        assert mask_model(name.decode(), key) == "***"
    assert mask_model("sk-another", key) == mask_model("hf.co/sk-x", b"") == "***"
    assert mask_model("hf.co/me/task-1:Q4", key) == "hf.co/me/task-1:Q4"
    assert (mask_model("short", b"short"), mask_model("shorter", b"short")) == ("***", "shorter")
