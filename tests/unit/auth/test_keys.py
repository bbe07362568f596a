"""A key belongs to somebody, or to nobody; what is kept of it is a digest."""

import hashlib
import hmac
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.auth.credentials import MAX_SECRET
from ollama_auth.auth.keys import DEFAULT_SCOPES, InvalidKeyError, Key, KeyRing, Principal, Scope, digest, fingerprint
from tests.harness.cases import each_of

KEY = "sk-ollama-0123456789abcdef"
ANNA, BEN = Principal("anna"), Principal("ben")


def ring(**keys: str) -> KeyRing:
    return KeyRing(Key(digest(secret), Principal(name)) for name, secret in keys.items())


def test_a_key_is_found_with_its_owner() -> None:
    both = ring(anna=KEY, ben="another-key-of-bens")
    assert both.find(KEY.encode()) == ANNA
    assert both.find(b"another-key-of-bens") == BEN


@each_of(
    "secret",
    [
        *(b"", b"x", b"\xff", bytes(32), digest(KEY), digest(KEY).hex().encode()),
        *(KEY[:-1].encode(), KEY.encode() + b"\n", b" " + KEY.encode(), KEY.upper().encode()),
    ],
)
def test_a_key_that_is_nobodys(secret: bytes) -> None:
    assert ring(anna=KEY).find(secret) is None


@given(st.binary())
def test_an_empty_ring_lets_nobody_in(secret: bytes) -> None:
    assert KeyRing([]).find(secret) is None


@given(st.binary())
def test_whatever_is_not_the_key_lets_nobody_in(secret: bytes) -> None:
    assert ring(anna=KEY).find(secret) is (None if secret != KEY.encode() else ANNA)


def test_no_secret_hashes_to_the_digest_that_stands_for_nobody() -> None:
    """Even with a ring that holds it, what is asked for is a secret and never a digest."""
    assert KeyRing([Key(bytes(32), ANNA)]).find(bytes(32)) is None


@pytest.mark.parametrize("secret", [KEY.encode(), b"not the key"])
def test_digests_are_compared_in_constant_time_for_known_and_unknown_keys(
    secret: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)))
    assert ring(anna=KEY).find(secret) is None  # What the comparison does not confirm is not found.
    assert [len(side) for pair in compared for side in pair] == [32, 32]


def test_what_can_be_printed_of_a_key_is_no_digest() -> None:
    key = Key(digest(KEY), ANNA)
    assert "anna" in repr(key)
    assert digest(KEY).hex() not in f"{key!r} {KeyRing([key])!r}"
    assert repr(digest(KEY)) not in f"{key!r} {KeyRing([key])!r}"


def test_the_one_key_of_the_environment_may_do_everything() -> None:
    default = Principal("default")
    assert default.scopes == set(Scope)
    assert default.models is None
    assert default.expires is default.requests_per_minute is default.concurrent_requests is None
    assert default.tokens_per_day is None


def test_a_key_of_a_file_may_use_models_and_change_nothing() -> None:
    assert sorted(DEFAULT_SCOPES) == ["embed", "infer", "list"]


def test_who_has_expired_is_still_known() -> None:
    gone = Principal("gone", expires=time.time() - 1)
    assert KeyRing([Key(digest(KEY), gone)]).find(KEY.encode()) is gone


@each_of(("seconds", "found"), [(-1, None), (0, None), (60, ANNA)])
def test_a_replaced_key_is_known_until_its_time_and_not_after(seconds: float, found: Principal | None) -> None:
    both = KeyRing([Key(digest("the-new-key-of-anna"), ANNA), Key(digest(KEY), ANNA, until=time.time() + seconds)])
    assert both.find(KEY.encode()) is found
    assert both.find(b"the-new-key-of-anna") is ANNA


def test_a_replaced_key_ends_while_the_ring_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    until = time.time() + 60
    replaced = KeyRing([Key(digest(KEY), ANNA, until=until)])
    monkeypatch.setattr(time, "time", lambda: until)
    assert replaced.find(KEY.encode()) is None


def test_a_public_key_is_found_and_is_no_secret() -> None:
    public = bytes(range(32))
    both = KeyRing([Key(None, ANNA, public), Key(digest(KEY), BEN)])
    assert both.find_ssh(public) is ANNA
    assert both.find_ssh(bytes(32)) is both.find_ssh(digest(KEY)) is both.find_ssh(b"") is None
    assert both.find(public) is None
    assert both.find(KEY.encode()) is BEN


def test_a_ring_counts_its_keys_and_knows_their_owners_by_name() -> None:
    keys = [Key(digest(KEY), ANNA), Key(digest("old-key-of-anna"), ANNA, until=1.0), Key(None, BEN, bytes(32))]
    assert len(KeyRing(keys)) == 3
    assert KeyRing(keys).principals == {"anna": ANNA, "ben": BEN}
    assert not KeyRing([])


@each_of("known_by", [(digest(KEY), None), (None, bytes(32))])
def test_a_key_cannot_be_that_of_two(known_by: tuple[bytes | None, bytes | None]) -> None:
    secret, public = known_by
    with pytest.raises(InvalidKeyError, match="anna and ben have the same key; give each"):
        KeyRing([Key(secret, ANNA, public), Key(secret, BEN, public)])


def test_ten_thousand_keys_are_looked_up_as_fast_as_ten() -> None:
    def lookup(count: int) -> float:
        many = KeyRing(Key(digest(f"key-number-{n}"), Principal(str(n))) for n in range(count))
        best = 1.0
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(200):
                many.find(b"key-number-7")
                many.find(b"nobody's key")
            best = min(best, time.perf_counter() - start)
        return best

    assert lookup(10_000) < 5 * lookup(10)


def test_a_digest_is_sha256() -> None:
    assert digest(KEY) == hashlib.sha256(KEY.encode()).digest()


@each_of("secret", ["", " ", "\t\n", "\N{NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}"])
def test_a_key_that_is_empty(secret: str) -> None:
    with pytest.raises(InvalidKeyError, match="the key is empty"):
        digest(secret)


@each_of(
    "mark",
    [
        *("two words", " ", "\n", "\r", "\0", "\x7f", "\x85", "é", "\udcff", "k" * MAX_SECRET),
        *("\N{ZERO WIDTH SPACE}", "\N{ZERO WIDTH NO-BREAK SPACE}"),
    ],
)
@each_of("form", ["{}" + KEY, KEY + "{}"])
def test_a_key_that_no_header_could_hold(form: str, mark: str) -> None:
    with pytest.raises(InvalidKeyError) as caught:
        digest(form.format(mark))
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_key_or_a_fault(text: str) -> None:
    try:
        assert len(digest(text)) == 32
    except InvalidKeyError:
        assert not (text.isascii() and text.isprintable() and text and " " not in text and len(text) <= MAX_SECRET)


def test_a_fingerprint_tells_two_keys_apart_and_is_short() -> None:
    assert fingerprint(b"one") == fingerprint(b"one") != fingerprint(b"two")
    assert len(fingerprint(b"one")) == 8


@given(st.binary())
def test_a_fingerprint_is_plain_text_of_any_bytes(secret: bytes) -> None:
    assert int(fingerprint(secret), 16) >= 0
    assert len(fingerprint(secret)) == 8
