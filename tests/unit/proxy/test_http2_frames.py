"""The frames of a client: cut at any point, counted, and joined."""

import time
from itertools import batched

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import ContinuationFrame, HeadersFrame

from ollama_auth.proxy.http2_frames import (
    DATA,
    END_STREAM,
    HEADERS,
    MAX_IDLE_FRAMES,
    PADDED,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    FrameError,
    FrameReader,
    frame,
    header_block,
    reset,
)
from tests.harness.cases import each_of

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING = frame(6, 0, 0, bytes(8))


def read(*pieces: bytes) -> list[Frame]:
    """What a new connection that sends these pieces has said after its preface."""
    reader = FrameReader(1000)
    assert [each.raw for each in reader.feed(PREFACE)] == [PREFACE]
    return [each for piece in pieces for each in reader.feed(piece)]


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream, payload)


def window(stream: int, added: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, added.to_bytes(4))


def test_data_of_a_stream_is_one_frame() -> None:
    """Also between that of another one, and in frames of several sizes."""
    sent = b"".join(data(1, b"a" * (n % 3 + 1)) + data(3, b"b") for n in range(100)) + PING
    assert [each.raw for each in read(sent)] == [PING, data(1, b"a" * 199), data(3, b"b" * 100)]


def test_nothing_passes_what_begins_or_ends_a_stream() -> None:
    last = data(1, b"z", END_STREAM)
    sent = [data(1, b"a"), data(1, b"b"), last, data(3, b"c"), data(3, b"d"), reset(3, ErrorCodes.CANCEL)]
    sent += [window(5, 1), window(5, 2), frame(HEADERS, 4, 7, b""), window(5, 3)]
    wanted = [data(1, b"ab"), last, data(3, b"cd"), sent[5], window(5, 3), sent[8], window(5, 3)]
    assert [each.raw for each in read(b"".join(sent))] == wanted


@each_of("size", [1, 2, 7, 8, 9, 10, 11, 40])
def test_the_same_at_any_split(size: int) -> None:
    head = frame(HEADERS, 0, 1, b"abc") + frame(9, 0, 1, b"de") + frame(9, 4, 1, b"f")
    sent = PREFACE + frame(SETTINGS, 0, 0, b"") + head + data(1, b"x" * 20) + data(1, b"y", END_STREAM) + PING
    reader = FrameReader(1000)
    got = [each for piece in batched(sent, size) for each in reader.feed(bytes(piece))]
    assert b"".join(each.raw for each in got) == sent
    assert [each.stream for each in got if each.kind == HEADERS] == [1]


def test_windows_that_h2_has_to_reject_are_not_joined() -> None:
    full = window(0, 2**31 - 1)
    for sent in ([full, full], [window(1, 0)], [frame(WINDOW_UPDATE, 0, 1, b"abc")]):
        assert sorted(each.raw for each in read(b"".join(sent))) == sorted(sent)


@pytest.mark.parametrize(
    "idle",
    [PING, window(1, 1), data(1, b""), data(1, b"\0x", PADDED), frame(0xEE, 0, 0, b""), frame(2, 0, 1, bytes(5))],
)
def test_frames_that_bring_nothing_are_counted(idle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time makes up for them, and so does what the client is sent; neither is saved."""
    now = time.monotonic()
    monkeypatch.setattr("ollama_auth.proxy.http2_frames.time.monotonic", lambda: now)
    reader = FrameReader(1000)
    list(reader.feed(PREFACE + idle * MAX_IDLE_FRAMES))
    now += 1
    list(reader.feed(idle * 20))
    reader.earned = 7
    list(reader.feed(idle * 7))
    now += 10_000
    list(reader.feed(idle * MAX_IDLE_FRAMES))
    with pytest.raises(FrameError, match="bring nothing") as caught:
        list(reader.feed(idle))
    assert caught.value.code == ErrorCodes.ENHANCE_YOUR_CALM


def test_data_that_brings_something_is_not_counted() -> None:
    assert len(read(*[data(1, b"x")] * 2000, *[data(1, bytes(300), PADDED)] * 2000)) == 4000


def test_many_settings_count_as_many_frames() -> None:
    with pytest.raises(FrameError):
        read(frame(SETTINGS, 0, 0, bytes(6 * 5000)))
    read(frame(SETTINGS, 0, 0, bytes(6 * 20)) * 5)


def test_a_head_has_a_bound() -> None:
    """In bytes, and in frames."""
    for part in (bytes(100), b""):
        with pytest.raises(FrameError):
            read(frame(HEADERS, 0, 1, part) + frame(9, 0, 1, part) * 1000)


def test_what_is_no_head_is_left_to_h2() -> None:
    """Another frame amid the parts of one."""
    sent = frame(HEADERS, 0, 1, b"a") + PING
    assert [each.raw for each in read(sent)] == [sent]
    assert [each.kind for each in read(frame(RST_STREAM, 0, 1, b"")[:-1], b"\0")] == [RST_STREAM]


def test_too_long_a_frame_is_refused_at_its_header() -> None:
    with pytest.raises(FrameError) as caught:
        read(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01")
    assert caught.value.code == ErrorCodes.FRAME_SIZE_ERROR


@each_of("flags", [[], ["PADDED"], ["PRIORITY"], ["PADDED", "PRIORITY"]])
def test_the_compressed_head(flags: list[str]) -> None:
    """As hyperframe writes it."""
    first = HeadersFrame(1, b"abc", pad_length=4 if "PADDED" in flags else 0, flags=flags)
    rest = ContinuationFrame(1, b"def", flags=["END_HEADERS"])
    assert header_block(first.serialize() + rest.serialize()) == b"abcdef"


@each_of("payload", [b"", b"\x05abc", b"\x01abcd"])
def test_a_head_with_too_much_padding(payload: bytes) -> None:
    with pytest.raises(FrameError):
        header_block(frame(HEADERS, PADDED | 32, 1, payload))
