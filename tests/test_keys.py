"""A key belongs to somebody, or to nobody; what is kept of it is a digest."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.credentials import MAX_SECRET
from ollama_auth.keys import Key, KeyFault, KeyRing, Principal, digest, fingerprint

KEY = "sk-ollama-0123456789abcdef"
ANNA, BEN = Principal("anna"), Principal("ben")


def ring(**keys: str) -> KeyRing:
    return KeyRing(Key(digest(secret), Principal(name)) for name, secret in keys.items())


def test_a_key_is_found_with_its_owner() -> None:
    both = ring(anna=KEY, ben="another-key-of-bens")
    assert both.find(KEY.encode()) == ANNA
    assert both.find(b"another-key-of-bens") == BEN


@pytest.mark.parametrize(
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


def test_a_digest_is_sha256() -> None:
    assert digest(KEY) == hashlib.sha256(KEY.encode()).digest()


@pytest.mark.parametrize("secret", ["", " ", "\t\n", "\N{NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}"])
def test_a_key_that_is_empty(secret: str) -> None:
    with pytest.raises(KeyFault, match="the key is empty"):
        digest(secret)


@pytest.mark.parametrize(
    "mark",
    [
        *("two words", " ", "\n", "\r", "\0", "\x7f", "\x85", "é", "\udcff", "k" * MAX_SECRET),
        *("\N{ZERO WIDTH SPACE}", "\N{ZERO WIDTH NO-BREAK SPACE}"),
    ],
)
@pytest.mark.parametrize("form", ["{}" + KEY, KEY + "{}"])
def test_a_key_that_no_header_could_hold(form: str, mark: str) -> None:
    with pytest.raises(KeyFault) as caught:
        digest(form.format(mark))
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_key_or_a_fault(text: str) -> None:
    try:
        assert len(digest(text)) == 32
    except KeyFault:
        assert not (text.isascii() and text.isprintable() and text and " " not in text and len(text) <= MAX_SECRET)


def test_a_fingerprint_tells_two_keys_apart_and_is_short() -> None:
    assert fingerprint(b"one") == fingerprint(b"one") != fingerprint(b"two")
    assert len(fingerprint(b"one")) == 8


@given(st.binary())
def test_a_fingerprint_is_plain_text_of_any_bytes(secret: bytes) -> None:
    assert int(fingerprint(secret), 16) >= 0
    assert len(fingerprint(secret)) == 8
