"""The signature of the stock CLI: what it made is taken, and nothing else is."""

import base64
import itertools

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_auth.auth.cli_signature import Signature, parse, verify, without_ts
from ollama_auth.auth.credentials import CredentialError
from tests.harness.cases import each_of

# Cut from what a real `ollama` 0.33 sent with OLLAMA_AUTH=1 and a key that was thrown away.
KEY = b"AAAAC3NzaC1lZDI1NTE5AAAAIOmhYnyO1NIo/B2aw2atZThi1GLkCSy7kaG2runxuegJ"
RECORDED = b"""
HEAD /?ts=1795426941
dLZKtvuLg6FMlc792oLmUBWjUrlt8+KheASvKsUzRYoetez5qZ8MhOAiYUZvvy4wDxl1wStXt07IdRQMkTLUAw==
GET /api/tags?ts=1795426941
LeEGgHlrKzTvDPoy61KlgX4moV+K5XWQkLhxKXrrwJlwcjWBQ9h49uIMsA86ETnMkS+wExU4qt00cYZrscgfCw==
POST /api/show?ts=1795426943
hdYHdJks3g65AEndHV2lhu+j5+naLAYQe4e86EHUDBTsVn+6DUzPISPzCTMlbqTkE+ZTFrKGqoj/E6U6FJIFAA==
POST /api/generate?ts=1795426943
CBJOogk8IP366BxfoH5tJwGGSJLQWZ5Y4tBQ3d8U7A07+le78jq+8rNr3qmdw54xVjKBCpcFFZJiGhgKZ0dZAA==
POST /api/blobs/sha256:fe3d0472fc37f0746de1ee60b063eed23112b8dd1dbd179fb8119f2affed4eae?ts=1795426943
BV9JVu4Hxu8UOQR9g0FVu7WLgJ6AdKLumUxVWgjEpr+2aDlwyA2D0ldYltxuKwfx6Skvtbez2Aw1oIzlKQzNDw==
POST /api/create?ts=1795426943
R/Ek7P0Jy62JlnbeLd3AuVQ87Q+G0uvokaFrr0MnkpOycm38Hh2wN/elgu2J3vJPD9DiKthORs4kaEFFr1IYCg==
""".split()
REQUESTS = list(zip(RECORDED[::3], RECORDED[1::3], RECORDED[2::3], strict=True))
THEN = 1795426943
WITH_A_PREFIX = b"CxKkHktQIo/UJRPYsi67rF+lOQ36BX4gtTd1JfwSxBSCzD4UqFV9Xzzfq39J7FyGuRhcr8+3NSCFFd3oL2aEDw=="
"""Of a CLI with OLLAMA_HOST=http://host/k/token, which sent HEAD /k/token/?ts=1795426944."""

NOW = 1_800_000_000
ALICE, BOB = Ed25519PrivateKey.from_private_bytes(b"a" * 32), Ed25519PrivateKey.from_private_bytes(b"b" * 32)


def ssh(public: bytes) -> bytes:
    return base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + public)


def signed(text: bytes, private: Ed25519PrivateKey = ALICE) -> bytes:
    """The value of the header, as the CLI makes it."""
    return ssh(private.public_key().public_bytes_raw()) + b":" + base64.b64encode(private.sign(text))


def signature(value: bytes) -> Signature:
    found = parse(value)
    assert found
    return found


def outcome(given: Signature, method: bytes, target: bytes, now: float = NOW, window: float = 60) -> bytes | str:
    """The key, or the reason why not."""
    try:
        return verify(given, method, target, now, window)
    except CredentialError as error:
        return error.reason if error.message.isprintable() else ""


def refusal(value: bytes, method: bytes, target: bytes, now: float = NOW, window: float = 60) -> bytes | str:
    return outcome(signature(value), method, target, now, window)


@each_of(("method", "target", "value"), REQUESTS)
def test_what_a_real_cli_signed(method: bytes, target: bytes, value: bytes) -> None:
    key = verify(signature(KEY + b":" + value), method, target, THEN, 60)
    assert ssh(key) == KEY
    assert without_ts(target) == target.partition(b"?")[0]


@each_of(("one", "other"), [*itertools.permutations(REQUESTS, 2)])
def test_a_recorded_signature_is_good_for_its_own_request_alone(
    one: tuple[bytes, bytes, bytes], other: tuple[bytes, bytes, bytes]
) -> None:
    method, target, _ = one
    assert refusal(KEY + b":" + other[2], method, target, THEN) == "bad signature"


def test_a_path_in_ollama_host_is_sent_and_not_signed() -> None:
    value = KEY + b":" + WITH_A_PREFIX
    assert refusal(value, b"HEAD", b"/k/token/?ts=1795426944", THEN) == "bad signature"
    assert verify(signature(value), b"HEAD", b"/?ts=1795426944", THEN, 60)


def test_a_signature_made_as_the_cli_makes_it() -> None:
    target = b"/api/chat?ts=%d" % NOW
    assert (
        verify(signature(signed(b"POST," + target)), b"POST", target, NOW, 60) == ALICE.public_key().public_bytes_raw()
    )


@each_of(
    ("method", "target"),
    [
        (b"DELETE", b"/api/chat?ts=%d" % NOW),
        (b"post", b"/api/chat?ts=%d" % NOW),
        (b"POST", b"/api/delete?ts=%d" % NOW),
        (b"POST", b"/api/cha%%74?ts=%d" % NOW),
        (b"POST", b"//api/chat?ts=%d" % NOW),
        (b"POST", b"/api/chat?ts=%d" % (NOW + 1)),
        (b"POST", b"/api/chat?model=evil&ts=%d" % NOW),
        (b"POST", b"/api/chat?ts=%d&model=evil" % NOW),
        (b"POST", b"/api/chat?ts=%d&" % NOW),
        (b"POST", b"/api/chat?t%%73=%d" % NOW),
        (b"POST,/api/chat?ts=1", b""),
        (b"", b"POST,/api/chat?ts=%d" % NOW),
    ],
)
def test_a_signature_is_good_for_one_method_path_and_time(method: bytes, target: bytes) -> None:
    assert refusal(signed(b"POST,/api/chat?ts=%d" % NOW), method, target) in ("bad signature", "malformed")


def test_a_parameter_that_was_signed_is_good() -> None:
    target = b"/api/tags?a=b&ts=%d&c" % NOW
    assert verify(signature(signed(b"GET," + target)), b"GET", target, NOW, 60)
    assert without_ts(target) == b"/api/tags?a=b&c"


def test_nobody_signs_for_another() -> None:
    text = b"GET,/api/tags?ts=%d" % NOW
    mixed = signed(text, ALICE).partition(b":")[0] + b":" + signed(text, BOB).partition(b":")[2]
    assert refusal(mixed, b"GET", b"/api/tags?ts=%d" % NOW) == "bad signature"
    assert verify(signature(signed(text, BOB)), b"GET", text[4:], NOW, 60) == BOB.public_key().public_bytes_raw()


@each_of("bit", range(0, 512, 7))
def test_a_bit_that_is_flipped(bit: int) -> None:
    text = b"GET,/api/tags?ts=%d" % NOW
    raw = bytearray(ALICE.sign(text))
    raw[bit // 8] ^= 1 << bit % 8
    value = ssh(ALICE.public_key().public_bytes_raw()) + b":" + base64.b64encode(raw)
    assert refusal(value, b"GET", text[4:]) == "bad signature"


ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the group (RFC 8032 section 5.1)."""


def test_the_second_spelling_of_a_signature_is_none() -> None:
    """Adding the group's order to its second half leaves the equation true; RFC 8032 section 5.1.7 forbids it."""
    text = b"GET,/api/tags?ts=%d" % NOW
    raw = ALICE.sign(text)
    second = raw[:32] + (int.from_bytes(raw[32:], "little") + ORDER).to_bytes(32, "little")
    value = ssh(ALICE.public_key().public_bytes_raw()) + b":" + base64.b64encode(second)
    assert refusal(value, b"GET", text[4:]) == "bad signature"


@each_of("public", [bytes(32), b"\1" + bytes(31), b"\xff" * 32])
@each_of("raw", [bytes(64), b"\1" + bytes(63), b"\xff" * 64])
def test_keys_and_signatures_that_are_none(public: bytes, raw: bytes) -> None:
    """Where the arithmetic holds for a degenerate key it is returned, and nobody has it in the keys file."""
    assert outcome(Signature(public, raw), b"GET", b"/api/tags?ts=%d" % NOW) in (public, "bad signature")


# Time.


@each_of(("off", "good"), [(0, True), (-60, True), (60, True), (-60.5, False), (61, False), (10**9, False)])
def test_the_window(off: float, good: bool) -> None:
    value, target = signed(b"GET,/?ts=%d" % NOW), b"/?ts=%d" % NOW
    if good:
        assert verify(signature(value), b"GET", target, NOW + off, 60)
    else:
        assert refusal(value, b"GET", target, NOW + off) == "stale"


def test_a_clock_that_is_none() -> None:
    assert refusal(signed(b"GET,/?ts=%d" % NOW), b"GET", b"/?ts=%d" % NOW, float("nan")) == "stale"
    assert refusal(signed(b"GET,/?ts=%d" % NOW), b"GET", b"/?ts=%d" % NOW, NOW, -1) == "stale"


@each_of(
    "query",
    [
        *(
            b"",
            b"?",
            b"?ts",
            b"?ts=",
            b"?TS=%d",
            b"?x=%d",
            b"?ts=0%d",
            b"?ts=+%d",
            b"?ts=-%d",
            b"?ts=%d.0",
            b"?ts=%de0",
        ),
        *(b"?ts=%%20%d", b"?ts=%d%%00", b"?ts=%d ", b"?ts=0x%d", b"?ts=%d&ts=%d", b"?ts=1&ts=%d", b"?ts=%d&%%74s=1"),
        *(b"?ts=%d&t%%73", b"?ts=%d00000", b"?x?ts=%d", b"?ts=" + b"9" * 100_000, b"?ts=\xd9\xa1%d"),
    ],
)
def test_a_time_that_is_none(query: bytes) -> None:
    target = b"/api/tags" + (query % ((NOW,) * query.replace(b"%%", b"").count(b"%d")))
    assert refusal(signed(b"GET," + target), b"GET", target) == "malformed"


# What else comes in an Authorization header.


@each_of(
    "value",
    [
        *(b"", b":", b"Bearer sk-ollama-0123", b"Basic dTpw", KEY, signed(b"x").replace(b":", b"")),
        *(signed(b"x") + b" ", b" " + signed(b"x"), signed(b"x") + b"\n", signed(b"x").replace(b":", b": ")),
        *(b"Bearer " + signed(b"x"), signed(b"x") + b":", signed(b"x")[:-1], signed(b"x").rstrip(b"=")),
        *(
            signed(b"x").replace(b"AAAAC3", b"AAAAC4"),
            signed(b"x").replace(b"+", b"-").replace(b"/", b"_", 1)[:-2] + b"-=",
        ),
        *(
            ssh(bytes(31)) + signed(b"x")[68:],
            ssh(bytes(33)) + signed(b"x")[68:],
            b"\xff" * 157,
            b"=" * 68 + b":" + b"=" * 88,
        ),
        base64.b64encode(b"\0\0\0\x07ssh-rsa\0\0\0\x24" + bytes(36)) + signed(b"x")[68:],
        b"A" * 1_000_000,
    ],
)
def test_what_is_no_signature(value: bytes) -> None:
    assert parse(value) is None


def test_a_signature_has_one_spelling() -> None:
    """Base64 leaves four bits of the last character unused, and a decoder ignores them."""
    value = signed(b"x")
    last = b"AQgw".index(value[-3:-2])
    other = value[:-3] + b"BRhx"[last : last + 1] + b"=="
    assert base64.b64decode(other.partition(b":")[2]) == base64.b64decode(value.partition(b":")[2])
    assert parse(value)
    assert parse(other) is None


@given(st.binary(max_size=200))
@example(base64.b64encode(bytes(51)) + b":" + base64.b64encode(bytes(64)))
@example(ssh(bytes(32)) + b":" + base64.b64encode(b"\xff" * 64))
def test_any_value_is_a_signature_or_none(value: bytes) -> None:
    found = parse(value)
    assert found is None or (len(found.key), len(found.value)) == (32, 64)


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=64, max_size=64),
    st.binary(max_size=8),
    st.binary(max_size=30) | st.binary(max_size=6).map(lambda more: b"/?ts=%d" % NOW + more),
    st.floats() | st.just(NOW),
)
@example(bytes(32), bytes(64), b"GET", b"/?ts=%d" % NOW, NOW)
def test_whatever_the_bytes_the_answer_is_a_key_or_a_signature_error(
    key: bytes, value: bytes, method: bytes, target: bytes, now: float
) -> None:
    found = outcome(Signature(key, value), method, target, now)
    assert found in (key, "malformed", "stale", "bad signature")


@each_of(
    ("target", "expected"),
    [
        (b"/?ts=1", b"/"),
        (b"/", b"/"),
        (b"/?", b"/?"),
        (b"/?a&ts=1", b"/?a"),
        (b"/?ts=1&a=b", b"/?a=b"),
        (b"/?a=ts&ts=1&ats=1&ts=2", b"/?a=ts&ats=1"),
        (b"/?%74s=1&T%53=2", b"/?T%53=2"),
        (b"/?a=1?ts=2", b"/?a=1?ts=2"),
        (b"/ts=1", b"/ts=1"),
    ],
)
def test_the_time_does_not_go_upstream(target: bytes, expected: bytes) -> None:
    assert without_ts(target) == expected
