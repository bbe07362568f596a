"""Header fields give exactly one secret, or a reason why there is none; whatever the bytes are."""

from base64 import b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_auth.auth.credentials import MAX_FIELD, MAX_SECRET, CredentialError, parse
from ollama_auth.http.head import Fields
from tests.harness.cases import each_of

KEY = b"sk-ollama-0123456789abcdef"
OTHER = b"sk-ollama-fedcba9876543210"


def basic(text: bytes) -> bytes:
    return b"Basic " + b64encode(text)


def authorization(value: bytes) -> Fields:
    return ((b"Authorization", value),)


def refusal(fields: Fields) -> CredentialError:
    with pytest.raises(CredentialError) as caught:
        parse(fields)
    return caught.value


@each_of(
    "value",
    [
        b"Bearer " + KEY,
        b"bearer " + KEY,
        b"BEARER " + KEY,
        b"Bearer    " + KEY,
        basic(b"anybody:" + KEY),
        basic(b":" + KEY),
        basic("jürgen:".encode() + KEY),
        basic(b"\xff\x00:" + KEY),
        basic(b"anybody:" + KEY).replace(b"Basic", b"bASIC"),
    ],
)
def test_an_authorization_that_holds_the_key(value: bytes) -> None:
    assert parse(authorization(value)) == KEY


@each_of("name", [b"x-api-key", b"X-Api-Key", b"X-API-KEY"])
def test_the_header_of_anthropics_clients(name: bytes) -> None:
    assert parse(((b"Host", b"gate"), (name, KEY))) == KEY


def test_a_basic_password_may_hold_colons() -> None:
    assert parse(authorization(basic(b"user:a:b:c"))) == b"a:b:c"


@each_of("value", [b"Bearer " + KEY, basic(b"user:" + KEY)])
def test_the_same_key_in_both_places_is_one_credential(value: bytes) -> None:
    assert parse((*authorization(value), (b"x-api-key", KEY))) == KEY


@each_of(
    "fields",
    [
        (),
        ((b"Host", b"gate"),),
        ((b"Proxy-Authorization", b"Bearer " + KEY),),
        ((b"Cookie", b"key=" + KEY),),
        ((b"Api-Key", KEY),),
        ((b"Authorization ", b"Bearer " + KEY),),
        ((b"X_Api_Key", KEY),),
    ],
)
def test_a_credential_in_another_place_is_none(fields: Fields) -> None:
    assert refusal(fields).reason == "missing"


@each_of(
    "value",
    [
        b"",
        b" ",
        KEY,
        b"Bearer",
        b"Bearer ",
        b"Bearer  ",
        b" Bearer " + KEY,
        b"Bearer\t" + KEY,
        b"Bearer \t" + KEY,
        b"Bearer " + KEY + b" ",
        b"Bearer " + KEY + b" " + KEY,
        b"Bearer " + KEY + b", Bearer " + KEY,
        b"Bearer: " + KEY,
        b"Bearer=" + KEY,
        b"Token " + KEY,
        b"Digest username=x",
        b"Negotiate " + KEY,
        b"Bearerx " + KEY,
        b"Bearer " + KEY + b"\n",
        b"Bearer " + KEY + b"\x00",
        b"Bearer " + KEY + b"\x7f",
        b"Bearer \xff\xfe",
        "Bearer schlüssel-0123456789".encode(),
        "Bearer \N{NO-BREAK SPACE}key".encode(),
        b"Bearer " + b"k" * (MAX_SECRET + 1),
        b"Bearer " + b" " * MAX_FIELD + KEY,
        b"B" * 1_000_000,
        b"Basic",
        b"Basic ",
        b"Basic " + KEY,
        b"Basic ====",
        b"Basic YTp",
        b"Basic YTp=b",
        b"Basic \xff\xfe\xfd\xfc",
        basic(b""),
        basic(KEY),
        basic(b":"),
        basic(KEY + b":"),
        basic(b"user:two words"),
        basic(b"user:" + KEY + b"\n"),
        basic(b"user:\xff\xfe"),
        basic(b"user:" + b"k" * (MAX_SECRET + 1)),
        basic(b"user:" + KEY)[:-1] + b"\n=",
        basic(b"user:" + KEY) + b" ",
        basic(b"u:" + KEY).replace(b"=", b""),
    ],
)
def test_an_authorization_that_is_malformed(value: bytes) -> None:
    assert refusal(authorization(value)).reason == "malformed"


@each_of("value", [b"", b" ", KEY + b" ", b"Bearer " + KEY, b"\xff", b"k\x00", b"k" * (MAX_SECRET + 1)])
def test_an_api_key_that_is_malformed(value: bytes) -> None:
    assert refusal(((b"x-api-key", value),)).reason == "malformed"


@each_of("empty", [b"", b"Bearer", b"Bearer ", b"basic", basic(b":"), basic(b"user:")])
def test_an_empty_authorization_beside_the_key_is_none(empty: bytes) -> None:
    assert parse((*authorization(empty), (b"x-api-key", KEY))) == KEY
    assert parse(((b"X-Api-Key", KEY), *authorization(empty))) == KEY
    assert refusal((*authorization(empty), (b"x-api-key", b""))).reason == "malformed"


def test_an_empty_field_beside_the_key_is_none() -> None:
    """In its own place, too."""
    assert parse(((b"x-api-key", b""), *authorization(b"Bearer " + KEY))) == KEY
    assert parse(((b"x-api-key", b""), (b"x-api-key", KEY))) == KEY
    assert parse((*authorization(b""), *authorization(b"Bearer " + KEY))) == KEY
    assert refusal((*authorization(b""), *authorization(b""))).reason == "malformed"


@each_of("bad", [KEY, b"Token x", b"Bearer \xff", b"Basic !", b"Basic " + KEY])
def test_a_malformed_authorization_is_not_made_good_by_the_key_in_the_other_place(bad: bytes) -> None:
    assert refusal((*authorization(bad), (b"x-api-key", KEY))).reason == "malformed"


@each_of("bad", [b"\xff", b"two words"])
def test_a_malformed_api_key_is_not_made_good_by_the_key_in_the_other_place(bad: bytes) -> None:
    assert refusal(((b"x-api-key", bad), *authorization(b"Bearer " + KEY))).reason == "malformed"


@each_of(
    "fields",
    [
        (*authorization(b"Bearer " + KEY), *authorization(b"Bearer " + KEY)),
        (*authorization(b"Bearer " + OTHER), (b"aUTHORIZATION", b"Bearer " + KEY)),
        (*authorization(b"Bearer"), *authorization(b"Bearer " + KEY)),
        ((b"x-api-key", KEY), (b"X-API-Key", KEY)),
        (*authorization(b"Bearer " + KEY), (b"x-api-key", KEY), (b"x-api-key", KEY)),
        (*authorization(b"Bearer " + KEY), (b"x-api-key", OTHER)),
        (*authorization(basic(b"u:" + OTHER)), (b"x-api-key", KEY)),
        (*authorization(b"Bearer " + KEY), (b"x-api-key", KEY[:-1])),
    ],
)
def test_more_than_one_credential(fields: Fields) -> None:
    assert refusal(fields).reason == "duplicate"


def test_the_longest_key_of_all() -> None:
    assert parse(authorization(b"Bearer " + b"k" * MAX_SECRET)) == b"k" * MAX_SECRET
    assert parse(authorization(basic(b"user:" + b"k" * MAX_SECRET))) == b"k" * MAX_SECRET


schemes = st.sampled_from([b"Bearer ", b"bearer", b"Basic ", b"basic  ", b"", b" ", b"Token "])
names = st.sampled_from([b"Authorization", b"X-Api-Key", b"authorization", b"x-api-key"]) | st.binary(max_size=4)
contents = st.binary(max_size=12) | st.binary(max_size=12).map(b64encode) | st.just(KEY)
header_fields = st.lists(st.tuples(names, st.builds(bytes.__add__, schemes, contents)), max_size=3).map(tuple)


@given(header_fields)
@example(authorization(b"Bearer \xff\xfe"))
@example(authorization(b"Basic \xff\xfe"))
@example(authorization(basic(b"\xff:\xff")))
def test_any_bytes_give_a_secret_or_a_credential_error(fields: Fields) -> None:
    try:
        secret = parse(fields)
    except CredentialError:
        return
    assert 0 < len(secret) <= MAX_SECRET
    assert all(0x21 <= byte <= 0x7E for byte in secret)


def why(fields: Fields) -> CredentialError | None:
    try:
        parse(fields)
    except CredentialError as error:
        return error
    return None


@given(header_fields)
def test_an_error_has_one_of_three_reasons_and_nothing_of_what_was_sent(fields: Fields) -> None:
    error = why(fields)
    if error:
        assert error.reason in ("missing", "malformed", "duplicate")
        assert KEY.decode() not in error.message
        assert error.message.isprintable()


@given(
    st.text("!$%&'()*+,-./09:;<=>?@AZ[]^_`az{|}~", min_size=1), st.binary(max_size=8).filter(lambda b: b":" not in b)
)
def test_every_way_to_send_a_secret_gives_that_secret(text: str, user: bytes) -> None:
    secret = text.encode()
    ways = [authorization(b"Bearer " + secret), authorization(basic(user + b":" + secret)), ((b"x-api-key", secret),)]
    assert {parse(fields) for fields in ways} == {secret}


@given(st.data(), header_fields)
def test_other_fields_and_the_order_change_nothing(data: st.DataObject, fields: Fields) -> None:
    others = tuple(field for field in fields if field[0].lower() not in (b"authorization", b"x-api-key"))
    shuffled = data.draw(st.permutations([*others, *authorization(b"Bearer " + KEY), (b"X-API-Key", KEY)]))
    assert parse(tuple(shuffled)) == KEY
