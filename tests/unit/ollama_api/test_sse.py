"""Lines and events are the same however a stream comes; long ones are passed on in pieces, and memory is bounded."""

from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.ollama_api.sse import Events, Lines
from tests.harness.cases import each_of

SCRAPS = [
    b"data:",
    b"data: x",
    b"data:y\n",
    b"event: e",
    b"event:",
    b"\n",
    b"\r\n",
    b"\n\n",
    b": c\n",
    b"id: 7\n",
    b"x" * 12,
]
streams = st.lists(st.sampled_from(SCRAPS) | st.binary(max_size=4), max_size=20).map(b"".join)


class Long:
    """Puts a long event into the list that it is given when it ends."""

    def __init__(self, found: list[object]) -> None:
        self.found, self.data = found, b""

    def feed(self, data: bytes) -> None:
        self.data += data

    def end(self) -> None:
        self.found.append(self.data)


def read(kind: type[Lines], body: bytes, size: int, max_size: int) -> list[object]:
    found: list[object] = []
    stream = kind(lambda *event: found.append(event), lambda: Long(found), max_size)
    for at in range(0, len(body), size):
        stream.feed(body[at : at + size])
    stream.finish()
    return found


@each_of(
    ("body", "expected"),
    [
        (b"data: a\n\n", [(b"a", b"")]),
        (b"data:a\r\n\r\n", [(b"a", b"")]),
        (b"event: e\ndata: a\n\ndata: b\n\n", [(b"a", b"e"), (b"b", b"")]),
        (b"data: a\ndata:\ndata: b\n\n", [b"a\n\n b"]),
        (b": data: a\nid: 7\nretry: 1\ndata\n\n", []),
        (b"data:\n\n", []),
        (b"data: a\n", [b"a"]),
        (b"data: " + b"a" * 20 + b"\n\n", [b"\n " + b"a" * 20]),
        (b"data: a\ndata: " + b"b" * 20 + b"\ndata: c\n\ndata: d\n\n", [b"a\n " + b"b" * 20 + b"\n c", (b"d", b"")]),
        (b"data: aaaa\ndata: bbbb\ndata: cccc\n\n", [b"aaaa\n bbbb\n cccc"]),
        (b":" + b"x" * 20 + b"\ndata: a\n\n", [(b"a", b"")]),
    ],
)
@each_of("size", [1, 3, 1000])
def test_events(body: bytes, expected: list[object], size: int) -> None:
    assert read(Events, body, size, 12) == expected


@given(streams, st.integers(1, 30), st.sampled_from([8, 1000]), st.sampled_from([Lines, Events]))
def test_it_is_the_same_however_a_stream_is_split(body: bytes, size: int, max_size: int, kind: type[Lines]) -> None:
    assert read(kind, body, size, max_size) == read(kind, body, len(body) + 1, max_size)


@given(streams)
def test_lines_are_all_of_a_stream(body: bytes) -> None:
    lines = read(Lines, body, 5, 1000)
    assert lines == [(line,) for line in body.split(b"\n")]
