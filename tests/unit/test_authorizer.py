"""The decision about a head: what the log may show of it."""

from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.authorizer import sent_id
from ollama_auth.http.head import Fields
from tests.harness.cases import each_of


def nobody(_: bytes) -> None:
    """Find the principal of a key: there is none."""


@each_of("sent", [b"a", b"0123-4567_89ab.cdef", b"A" * 40])
def test_a_well_formed_request_id_is_taken(sent: bytes) -> None:
    assert sent_id(((b"X-Request-ID", sent),), nobody) == sent.decode()


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
def test_any_other_request_id_is_not(fields: Fields) -> None:
    assert sent_id(fields, nobody) is None


@given(st.lists(st.tuples(st.just(b"x-request-id") | st.binary(), st.binary()), max_size=3).map(tuple))
def test_no_bytes_make_a_request_id_that_ends_a_line_or_a_header(fields: Fields) -> None:
    found = sent_id(fields, nobody)
    assert found is None or 0 < len(found) <= 40
    assert set(found or "") <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


@each_of("sent", [b"sk-ollama-0123456789abcdef", b"SK-x", b"a-key-without-prefix", b"1.a-key-without-prefix-2"])
def test_a_key_is_not_taken_for_a_request_id(sent: bytes) -> None:
    fields = ((b"X-Request-Id", sent),)
    assert sent_id(fields, lambda text: "anna" if text == b"a-key-without-prefix" else None) is None
