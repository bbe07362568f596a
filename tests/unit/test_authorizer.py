"""The decision about a head: what the log may show of it."""

import re

from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.authorizer import request_id
from ollama_auth.http.head import Fields
from tests.harness.cases import each_of


def nobody(_: bytes) -> None:
    """Find the principal of a key: there is none."""


@each_of("sent", [b"a", b"0123-4567_89ab.cdef", b"A" * 40])
def test_a_well_formed_request_id_is_taken(sent: bytes) -> None:
    assert request_id(((b"X-Request-ID", sent),), nobody) == sent.decode()


@each_of(
    "fields",
    [
        (),
        ((b"X-Request-Id", b""),),
        ((b"X-Request-Id", b"A" * 41),),
        ((b"X-Request-Id", b"two words"),),
        ((b"X-Request-Id", b"a\n"),),
        ((b"X-Request-Id", b"a\r\nSet-Cookie: x"),),
        ((b"X-Request-Id", b'a"b'),),
        ((b"X-Request-Id", b"a/b"),),
        ((b"X-Request-Id", b"\x1b[2J"),),
        ((b"X-Request-Id", "é".encode()),),
        ((b"X-Request-Id", b"\xff"),),
        ((b"X-Request-Id", b"one"), (b"x-request-id", b"two")),
        ((b"X-Request-Id", b"one"), (b"x-request-id", b"one")),
        ((b"X-Request-Id2", b"one"),),
    ],
)
def test_any_other_request_id_is_replaced_by_one_of_our_own(fields: Fields) -> None:
    found = request_id(fields, nobody)
    assert re.fullmatch(r"[0-9a-f]{16}", found)
    assert found != request_id(fields, nobody)


@given(st.lists(st.tuples(st.just(b"x-request-id") | st.binary(), st.binary()), max_size=3).map(tuple))
def test_no_bytes_make_a_request_id_that_ends_a_line_or_a_header(fields: Fields) -> None:
    found = request_id(fields, nobody)
    assert 0 < len(found) <= 40
    assert set(found) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


@each_of("sent", [b"sk-ollama-0123456789abcdef", b"SK-x", b"a-key-without-prefix", b"1.a-key-without-prefix-2"])
def test_a_key_is_not_taken_for_a_request_id(sent: bytes) -> None:
    found = request_id(((b"X-Request-Id", sent),), lambda text: "anna" if text == b"a-key-without-prefix" else None)
    assert found.encode() != sent
