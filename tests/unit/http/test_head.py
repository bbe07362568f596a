"""A request head is read in the one way everybody reads it, or refused."""

import h11
import pytest
from h11._receivebuffer import ReceiveBuffer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ollama_auth.http.head import (
    CHUNKED,
    MAX_METHOD,
    Bounds,
    Fields,
    Head,
    HeadError,
    check_fields,
    check_text,
    parse_head,
    take_head,
)
from tests.harness.cases import each_of

BOUNDS = Bounds()
TOKEN = "!#$%&'*+-.^_`|~09azAZ"
FRAMING = ((), (b"Content-Length: 0",), (b"Content-Length: 12",), (b"Transfer-Encoding: chunked",))


def received(*pieces: bytes) -> ReceiveBuffer:
    buffer = ReceiveBuffer()
    for piece in pieces:
        buffer += piece
    return buffer


def head_of(*lines: bytes, first: bytes = b"POST /api/chat HTTP/1.1", host: bytes = b"Host: gate") -> bytes:
    """A head as take_head cuts it."""
    return b"\r\n".join((first, *((host,) if host else ()), *lines))


def refused(raw: bytes, bounds: Bounds = BOUNDS) -> int:
    with pytest.raises(HeadError) as caught:
        parse_head(raw, bounds)
    return caught.value.status


def take(data: bytes, bounds: Bounds = BOUNDS) -> bytes | None:
    return take_head(received(data), bounds)


def outcome(data: bytes, bounds: Bounds = BOUNDS) -> Head | HeadError | None:
    try:
        raw = take(data, bounds)
        return parse_head(raw, bounds) if raw is not None else None
    except HeadError as error:
        return error


def not_taken(data: bytes, bounds: Bounds = BOUNDS) -> int:
    with pytest.raises(HeadError) as caught:
        take(data, bounds)
    return caught.value.status


tokens = st.text(TOKEN, min_size=1, max_size=MAX_METHOD).map(str.encode)
targets = st.text("/?&=%:@[]\"\\~azAZ09.+;,!$'()*-_^`{|}<>", min_size=1, max_size=20).map(str.encode)
values = st.text('az09 \t"\\:,;=()é€🦙', max_size=20).map(lambda text: text.strip(" \t").encode())
names = tokens.filter(
    lambda name: name.lower() not in (b"host", b"content-length", b"transfer-encoding", b"connection")
)
lines = st.builds(
    lambda name, gap, value: name + b":" + gap + value, names, st.sampled_from([b"", b" ", b"\t "]), values
)
valid_heads = st.builds(
    lambda method, target, more, framing: head_of(*more, *framing, first=b"%s %s HTTP/1.1" % (method, target)),
    tokens,
    targets,
    st.lists(lines, max_size=5),
    st.sampled_from(FRAMING),
)
PIECES = [
    *(b"GET / HTTP/1.1", b"POST", b"/", b"HTTP/1.1", b"HTTP/1.0", b"Host: gate", b"Connection: close", b"a: b"),
    *(b"Content-Length: 5", b"Content-Length: 6", b"Transfer-Encoding: chunked", b"Expect: 100-continue"),
    *(b" ", b":", b",", b"\t", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b"\x0b", b"\x7f"),
    *(b"\xff", b"\xc3\xa9", b"\xc2\x85", b"\xed\xa0\x80"),
]
hostile_bytes = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=16).map(b"".join)
almost_heads = st.builds(
    lambda start, rest: b"\r\n".join([start, *rest]),
    st.sampled_from([b"GET / HTTP/1.1", b"POST /api/chat HTTP/1.0", b"GET /\t HTTP/1.1"]),
    st.lists(st.sampled_from(PIECES) | lines | hostile_bytes, max_size=6),
)
anything = st.binary(max_size=60) | hostile_bytes | almost_heads | valid_heads


def test_a_head_and_its_parts() -> None:
    raw = head_of(b"Content-Type:application/json", b"X: \t a b \t", b"content-length: 17")
    assert parse_head(raw, BOUNDS) == Head(
        b"POST",
        b"/api/chat",
        b"HTTP/1.1",
        (
            (b"Host", b"gate"),
            (b"Content-Type", b"application/json"),
            (b"X", b"a b"),
            (b"content-length", b"17"),
        ),
        17,
        False,
    )


@each_of(
    "first",
    [
        b"",
        b"GET",
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b" GET / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET / a HTTP/1.1",
        b"GET\t/\tHTTP/1.1",
        b"GET / http/1.1",
        b"GET / HTTP/1.1x",
        b"GET / HTTP/11",
        b"GET / HTTP/1.",
        b"GET / HTTP/1.1\r",
        b"GET / ICY/1.1",
        b"G(T / HTTP/1.1",
        b"G\xc3\x89T / HTTP/1.1",
        b"G\x00T / HTTP/1.1",
        b"GET /a#b HTTP/1.1",
        b"GET /\xc3\xa9 HTTP/1.1",
        b"GET /\xff HTTP/1.1",
        b"GET /\x00 HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b"GET /\n HTTP/1.1",
        b"GET /\r HTTP/1.1",
        b"GET /\x0b HTTP/1.1",
        b"A" * (MAX_METHOD + 1) + b" / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_a_request_line_that_is_none(first: bytes) -> None:
    assert refused(head_of(first=first)) == 400


@each_of("version", [b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/9.9"])
def test_a_version_that_is_not_spoken(version: bytes) -> None:
    assert refused(head_of(first=b"GET / " + version)) == 505


def test_the_preface_of_http2_without_tls() -> None:
    raw = take(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert raw
    assert refused(raw) == 505


@each_of(
    "line",
    [
        b"",
        b"no colon",
        b": no name",
        b"Space : before the colon",
        b"Tab\t: before the colon",
        b" folded: line",
        b"\tfolded: line",
        b" folded",
        b"Two Words: x",
        b"N\x00ul: x",
        b"N\xc3\xa9: x",
        b"(name): x",
        b"X: a\x00b",
        b"X: a\rb",
        b"X: a\nb",
        b"X: a\x0bb",
        b"X: a\x1bb",
        b"X: a\x7fb",
        b"X: \r",
    ],
)
def test_a_field_that_is_none(line: bytes) -> None:
    assert refused(head_of(line)) == 400


@each_of(
    "host",
    [
        *(b"", b"Host: a\r\nHost: a", b"Host: a\r\nhOST: b", b"Host: a b", b"Host: a/b", b"Host: u@a", b"Host: a?b"),
        *(b"Host: [::1", b"Host: ::1", b"Host: a:123456", b"Host: a:b", b"Host: a#b", b"Host: a\\b", b"Host: \xc3\xa9"),
    ],
)
def test_a_host_that_is_none(host: bytes) -> None:
    assert refused(head_of(host=host)) == 400


@each_of("host", [b"", b"gate", b"gate:8081", b"10.0.0.1:1", b"[::1]", b"[fe80::1]:8081", b"a_b.c"])
def test_a_host_that_is_one(host: bytes) -> None:
    assert parse_head(head_of(host=b"Host: " + host), BOUNDS).fields == ((b"Host", host),)


def test_http_1_0_may_leave_out_the_host_but_not_send_two() -> None:
    old = b"GET / HTTP/1.0"
    assert parse_head(head_of(first=old, host=b""), BOUNDS).fields == ()
    assert refused(head_of(b"Host: b", first=old)) == 400


@each_of(
    ("framing", "length"),
    [
        ((), 0),
        ((b"Content-Length: 0",), 0),
        ((b"Content-Length:7",), 7),
        ((b"CONTENT-LENGTH: 999999999999999999",), 10**18 - 1),
        ((b"Transfer-Encoding: chunked",), CHUNKED),
        ((b"transfer-encoding:CHUNKED\t",), CHUNKED),
    ],
)
def test_the_length_of_a_body(framing: tuple[bytes, ...], length: int) -> None:
    assert parse_head(head_of(*framing), BOUNDS).body == length


@each_of(
    "framing",
    [
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 0"),
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5", b"content-length: 6"),
        (b"Content-Length: 5, 5",),
        (b"Content-Length:",),
        (b"Content-Length: +5",),
        (b"Content-Length: -5",),
        (b"Content-Length: 05",),
        (b"Content-Length: 00",),
        (b"Content-Length: 5.0",),
        (b"Content-Length: 0x5",),
        (b"Content-Length: 1_0",),
        (b"Content-Length: 5 5",),
        ("Content-Length: \N{ARABIC-INDIC DIGIT FIVE}".encode(),),
        (b"Content-Length: 1000000000000000000",),
        (b"Content-Length: " + b"9" * 5000,),
        (b"Transfer-Encoding:",),
        (b"Transfer-Encoding: identity",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked, chunked",),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        (b"Transfer-Encoding: chunked;q=1",),
        (b"Transfer-Encoding: xchunked",),
        (b'Transfer-Encoding: "chunked"',),
        (b"Transfer-Encoding: \x0bchunked",),
        ("Transfer-Encoding: chun\N{KELVIN SIGN}ed".encode(),),
        (b"Transfer-Encoding : chunked",),
        (b"X: y\nTransfer-Encoding: chunked",),
    ],
)
def test_a_framing_that_two_could_read_differently(framing: tuple[bytes, ...]) -> None:
    assert refused(head_of(*framing)) == 400


def test_chunks_in_http_1_0() -> None:
    assert refused(head_of(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0")) == 400


@each_of(
    ("version", "connection", "close"),
    [
        (b"HTTP/1.1", (), False),
        (b"HTTP/1.1", (b"Connection: keep-alive",), False),
        (b"HTTP/1.1", (b"Connection: closed",), False),
        (b"HTTP/1.1", (b"Connection: close",), True),
        (b"HTTP/1.1", (b"Connection: keep-alive , CLOSE",), True),
        (b"HTTP/1.1", (b"Connection: te", b"connection:close"), True),
        (b"HTTP/1.0", (), True),
        (b"HTTP/1.0", (b"Connection: keep-alive",), True),
    ],
)
def test_who_wants_the_connection_closed(version: bytes, connection: tuple[bytes, ...], close: bool) -> None:
    assert parse_head(head_of(*connection, first=b"GET / " + version), BOUNDS).close is close


@each_of("data", [b"", b"\r", b"\r\n", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r"])
def test_an_incomplete_head_is_waited_for(data: bytes) -> None:
    assert take(data) is None


def test_what_follows_a_head_stays_in_the_buffer() -> None:
    buffer = received(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n\x00\n")
    assert take_head(buffer, BOUNDS) == b"GET /1 HTTP/1.1"
    assert take_head(buffer, BOUNDS) == b"GET /2 HTTP/1.1"
    assert bytes(buffer) == b"\x00\n"


@each_of("count", [1, 2, 3, 1000])
def test_empty_lines_before_a_request_are_ignored_however_they_arrive(count: int) -> None:
    buffer = received(b"\r\n" * count + b"GET / HTTP/1.1\r\n\r\n")
    assert take_head(buffer, BOUNDS) == b"GET / HTTP/1.1"


def test_empty_lines_are_not_kept() -> None:
    buffer = received(b"\r\n" * 30_000)
    assert take_head(buffer, BOUNDS) is None
    assert not buffer


@each_of(
    "data",
    [
        b"GET / HTTP/1.1\n\n",
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\nY: b",
        b"GET / HTTP/1.1\r\nX: a\rY: b",
        b"GET / HTTP/1.1\r\r\nX",
        b"GET /\x00",
        b"\n",
        b"\r\r\n",
        b"\x00",
        b"X\n\r\n\r\n",
    ],
)
def test_a_bare_line_end_or_nul_is_refused_at_once(data: bytes) -> None:
    assert not_taken(data) == 400


def test_a_head_of_just_the_right_size_is_taken() -> None:
    head = head_of(b"X: y")
    assert take(head + b"\r\n\r\n", Bounds(head=len(head))) == head


def test_a_head_that_is_a_byte_too_long_is_refused_whether_it_ends_or_not() -> None:
    head = head_of(b"X: y")
    bounds = Bounds(head=len(head) - 1)
    assert not_taken(head + b"\r\n\r\n", bounds) == 431
    assert not_taken(head + b"more", bounds) == 431


def test_an_endless_head_is_refused_before_it_ends() -> None:
    assert not_taken(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000) == 431


def test_an_endless_target_is_refused_before_it_ends() -> None:
    assert not_taken(b"GET /" + b"a" * BOUNDS.target + b"a" * MAX_METHOD + b" HTTP/1.1") == 414


def test_a_target_of_just_the_right_size_is_taken_and_no_longer_one() -> None:
    bounds = Bounds(target=10)
    assert parse_head(head_of(first=b"GET /234567890 HTTP/1.1"), bounds).target == b"/234567890"
    assert refused(head_of(first=b"GET /2345678901 HTTP/1.1"), bounds) == 414


def test_the_longest_request_line_may_come_byte_by_byte() -> None:
    line = b"M" * MAX_METHOD + b" /234567890 HTTP/1.1"
    buffer = ReceiveBuffer()
    for byte in line + b"\r\n\r":
        buffer += bytes([byte])
        assert take_head(buffer, Bounds(target=10)) is None


def test_as_many_fields_as_allowed_and_one_more() -> None:
    lines = [b"X: y"] * (BOUNDS.fields - 1)
    assert len(parse_head(head_of(*lines), BOUNDS).fields) == BOUNDS.fields
    assert refused(head_of(b"X: y", *lines)) == 431


@given(
    anything | anything.map(lambda data: data + b"\r\n\r\n"),
    st.sampled_from([BOUNDS, Bounds(head=20, fields=2, target=5)]),
)
def test_any_bytes_give_a_head_or_nothing_yet_or_a_refusal(data: bytes, bounds: Bounds) -> None:
    found = outcome(data, bounds)
    if isinstance(found, HeadError):
        assert found.status in (400, 414, 431, 505)
        assert found.message.isascii()
        assert found.message.isprintable()


@settings(max_examples=500)
@given(anything)
def test_what_is_accepted_is_unambiguous(raw: bytes) -> None:
    try:
        head = parse_head(raw, BOUNDS)
    except HeadError:
        return
    assert_unambiguous(head, raw)


def assert_unambiguous(head: Head, raw: bytes) -> None:
    """No control characters, one Host, one length of the body, and nothing in the bytes that is not in the head."""
    everything = b"".join([head.method, head.target, head.version, *(n + v for n, v in head.fields)])
    assert not any(byte < 0x20 or byte == 0x7F for byte in everything.replace(b"\t", b""))
    assert b"\t" not in head.method + head.target + b"".join(name for name, _ in head.fields)
    assert everything.decode()
    assert len(head.fields) == raw.count(b"\r\n")
    sent = [name.lower() for name, _ in head.fields]
    assert sent.count(b"host") == 1 or (head.version == b"HTTP/1.0" and b"host" not in sent)
    lengths = [value for name, value in head.fields if name.lower() == b"content-length"]
    codings = [value.lower() for name, value in head.fields if name.lower() == b"transfer-encoding"]
    assert codings == ([b"chunked"] if head.body == CHUNKED else [])
    assert lengths == [b"%d" % head.body] or (not lengths and head.body in (0, CHUNKED))


@given(valid_heads)
def test_a_valid_head_is_accepted(raw: bytes) -> None:
    assert_unambiguous(parse_head(raw, BOUNDS), raw)


@given(valid_heads, st.integers(0, 3), st.integers(0, 4), st.data())
def test_splitting_a_head_at_any_byte_changes_nothing(raw: bytes, blank: int, slack: int, data: st.DataObject) -> None:
    """Also where the head and its target are as long as they may be."""
    bounds = Bounds(head=len(raw) + slack, target=len(raw.split(b" ")[1]) + slack)
    sent = b"\r\n" * blank + raw + b"\r\n\r\n"
    cut = data.draw(st.integers(0, len(sent) - 1))
    buffer = received(sent[:cut])
    assert take_head(buffer, bounds) is None
    buffer += sent[cut:] + b"body\n"
    assert take_head(buffer, bounds) == raw
    assert bytes(buffer) == b"body\n"


@given(valid_heads)
def test_a_head_may_come_byte_by_byte(raw: bytes) -> None:
    bounds = Bounds(head=len(raw), target=len(raw.split(b" ")[1]))
    buffer = ReceiveBuffer()
    for byte in raw + b"\r\n\r":
        buffer += bytes([byte])
        assert take_head(buffer, bounds) is None
    buffer += b"\n"
    assert take_head(buffer, bounds) == raw


@given(almost_heads | valid_heads)
@example(head_of(b"Content-Length: 5", b"X: \xc2\x85"))
def test_another_parser_reads_the_same(raw: bytes) -> None:
    """What h11 takes for a request too has the same method, target and fields for it."""
    try:
        head = parse_head(raw, BOUNDS)
        peer = h11.Connection(h11.SERVER)
        peer.receive_data(raw + b"\r\n\r\n")
        request = peer.next_event()
    except (HeadError, h11.RemoteProtocolError):
        return
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (head.method, head.target)
    assert [(n, v) for n, v in request.headers if n != b"transfer-encoding"] == [
        (n.lower(), v) for n, v in head.fields if n.lower() != b"transfer-encoding"
    ]


# HTTP/2: what its library lets through.


@each_of(
    ("fields", "target", "status"),
    [
        (((b"x", b"y"),) * 101, b"/", 431),
        (((b"x", b"y" * 40_000),), b"/", 431),
        ((), b"/" * 9000, 414),
        ((), b"", 400),
        ((), b"/a b", 400),
        ((), b"/a#b", 400),
        ((), b"/\x1b[2J", 400),
        ((), b"/\xc3\xa9", 400),
        (((b"", b"y"),), b"/", 400),
        (((b"two words", b"y"),), b"/", 400),
        (((b"n\xc3\xa9", b"y"),), b"/", 400),
        (((b":path", b"/"),), b"/", 400),
        (((b"x", b"a\x1bb"),), b"/", 400),
        (((b"x", b"a\r\nb: c"),), b"/", 400),
        (((b"cookie", b"a=1"),) * 3000, b"/", 431),
        (((b"cookie", b"a=1"), *((b"x", b"y"),) * 100), b"/", 431),
        (((b"content-length", b"+5"),), b"/", 400),
        (((b"content-length", b"5, 5"),), b"/", 400),
        (((b"content-length", b"5"), (b"content-length", b"6")), b"/", 400),
        (((b"content-length", b"5"), (b"content-length", b"5")), b"/", 400),
        (((b"transfer-encoding", b"chunked"),), b"/", 400),
        (((b"host", b"a"), (b"host", b"b")), b"/", 400),
    ],
)
def test_an_http2_head_is_held_to_the_same_rules(fields: Fields, target: bytes, status: int) -> None:
    with pytest.raises(HeadError) as caught:
        check_fields(fields, target, BOUNDS)
    assert caught.value.status == status


def test_the_crumbs_of_a_cookie_are_one_field() -> None:
    """RFC 9113 section 8.2.3."""
    check_fields((*((b"cookie", b"a=1"),) * 300, *((b"x", b"y"),) * 99), b"/", BOUNDS)


def test_only_what_goes_upstream_must_be_text() -> None:
    raw = head_of(b"X-User-Name: Jos\xe9", b"Y: \xed\xa0\x80")
    fields = parse_head(raw, BOUNDS).fields
    assert fields[1:] == ((b"X-User-Name", b"Jos\xe9"), (b"Y", b"\xed\xa0\x80"))
    check_text(((b"Accept", "jos\u00e9".encode()),))
    for field in fields[1:]:
        with pytest.raises(HeadError, match="not UTF-8"):
            check_text((field,))


def test_an_http2_head_that_ends_its_request_announces_no_body() -> None:
    check_fields(((b"content-length", b"0"),), b"/", BOUNDS, ended=True)
    check_fields(((b"content-length", b"5"),), b"/", BOUNDS)
    with pytest.raises(HeadError, match="there is none"):
        check_fields(((b"content-length", b"5"),), b"/", BOUNDS, ended=True)


@given(
    st.lists(st.tuples(st.binary(max_size=5) | tokens, st.binary(max_size=5) | values), max_size=4).map(tuple),
    st.binary(max_size=8) | targets,
)
def test_an_http2_head_that_is_taken_would_be_taken_in_http_1(fields: Fields, target: bytes) -> None:
    try:
        check_fields(fields, target, BOUNDS)
    except HeadError:
        return
    written = [name + b":" + value for name, value in fields if name.lower() != b"host"]
    assert parse_head(head_of(*written, first=b"GET %s HTTP/1.1" % target), BOUNDS).target == target
