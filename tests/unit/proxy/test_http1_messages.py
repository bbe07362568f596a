"""The reader of chunks reads what h11's reads, in fewer pieces."""

import itertools

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.proxy.http1_messages import JoiningReader
from tests.harness.cases import each_of

HEADERS = [
    "%x\r\n",
    "%X\r\n",
    "00%x\r\n",
    "%x;a\r\n",
    "%x;a=\rb\r\n",
    "%x \t\r\n",
    "%x ;a\r\n",
    "%x\n",
    "%x;a\nb\r\n",
    "x\r\n",
]
CHUNKS = st.builds(
    lambda content, header, end: (header % len(content) if "%" in header else header).encode() + content + end,
    st.binary(min_size=1, max_size=20) | st.sampled_from([b"\r\n", b"0\r\n\r\n"]),
    st.sampled_from(HEADERS[:6] * 4 + HEADERS),
    st.sampled_from([b"\r\n"] * 12 + [b"", b"\r", b"\n", b"xy"]),
)
ENDS = st.sampled_from([b"", b"0\r\n\r\n", b"000\r\n\r\n", b"0;x\r\nA: b\r\n\r\n", b"0\r\nx\r\n\r\n"])


def read(reader: ChunkedReader, pieces: list[bytes]) -> tuple[bytes, str, bytes, int]:
    """(content, how it ended, what was not read, the number of events)"""
    buffer, content, count = ReceiveBuffer(), b"", 0
    for piece in pieces:
        buffer += piece
        try:
            while part := reader(buffer):
                if isinstance(part, h11.EndOfMessage):
                    return content, str(part.headers), bytes(buffer) + piece[len(piece) :], count
                content, count = content + bytes(part.data), count + 1
        except h11.ProtocolError:
            return content, "broken", b"", count
    return content, "open", bytes(buffer), count


@given(st.lists(CHUNKS, max_size=8), ENDS, st.lists(st.integers(0, 200), max_size=5), st.booleans())
def test_it_reads_what_h11_reads(chunks: list[bytes], end: bytes, splits: list[int], drip: bool) -> None:
    raw = b"".join(chunks) + end
    at = sorted({0, len(raw), *(split % (len(raw) + 1) for split in splits)})
    pieces = [raw[i : i + 1] for i in range(len(raw))] if drip else [raw[i:j] for i, j in itertools.pairwise(at)]
    ours, theirs = read(JoiningReader(), pieces), read(ChunkedReader(), pieces)
    assert ours[:3] == theirs[:3]
    assert ours[3] <= 3 * len(pieces)


@each_of("header", [b"1\r\n", b"1;a\r\n", b"01 \r\n", b"1;\r\r\n"])
@each_of("size", [1 << 18, (1 << 16) - 1, 1001])
def test_chunks_of_a_byte_are_a_few_events_a_read(header: bytes, size: int) -> None:
    raw = (header + b"x\r\n") * 20_000
    pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
    content, _, _, count = read(JoiningReader(), pieces)
    assert len(content) >= 20_000 - 1
    assert count <= 3 * len(pieces)
