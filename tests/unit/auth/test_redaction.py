"""A credential goes nowhere: not into a URL that goes upstream, a header field, or a log."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ollama_auth.auth.redaction import MASKED_PATH, MAX_SHOWN, clean_target, mask_path, without

KEY = b"sk-ollama-0123456789abcdef"
URL_KEY = b"ab+/cd==ef&gh?ij%41kl;mn"
"""A key with all the characters that mean something in a URL."""


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
