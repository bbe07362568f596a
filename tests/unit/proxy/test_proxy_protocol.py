"""Headers of the PROXY protocol, and what is none."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.proxy.proxy_protocol import MAX_BLOCK, MAX_LINE, SIGNATURE, ProxyHeaderError, parse
from tests.harness.cases import each_of
from tests.harness.wire import proxy_header

V4 = struct.pack(">4s4sHH", bytes((203, 0, 113, 9)), bytes(4), 5678, 80)
V6 = ipaddress.ip_address("2001:db8::1").packed + bytes(16) + struct.pack(">HH", 5678, 80)


def version_2(command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + bytes((command, family)) + struct.pack(">H", len(block)) + block


GOOD = {
    b"PROXY TCP4 203.0.113.9 10.0.0.1 5678 80\r\n": ("203.0.113.9", 5678),
    b"PROXY TCP6 2001:DB8::1 ::1 5678 80\r\n": ("2001:db8::1", 5678),
    b"PROXY TCP6 ::ffff:203.0.113.9 ::1 5678 80\r\n": ("203.0.113.9", 5678),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n": None,
    version_2(0x21, 0x11, V4): ("203.0.113.9", 5678),
    version_2(0x21, 0x21, V6): ("2001:db8::1", 5678),
    version_2(0x21, 0x11, V4 + b"\x04\x00\x01x"): ("203.0.113.9", 5678),
    version_2(0x21, 0x11, V4 + bytes(MAX_BLOCK - len(V4))): ("203.0.113.9", 5678),
    version_2(0x20, 0x00, b""): None,
    version_2(0x20, 0x11, V4): None,
    version_2(0x21, 0x00, b"anything"): None,
    version_2(0x21, 0x31, bytes(216)): None,
}


@each_of("header", GOOD)
def test_a_header_at_any_split(header: bytes) -> None:
    assert parse(header) == parse(header + b"GET /") == (len(header), GOOD[header])
    assert [parse(header[:size]) for size in range(len(header))] == [None] * len(header)


def test_what_the_harness_sends() -> None:
    for version in (1, 2):
        header = proxy_header(version, "203.0.113.9")
        assert parse(header) == (len(header), ("203.0.113.9", 4711))


@each_of(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"\r\n\r\nGET",
        b"PROXYTCP4",
        b"proxy TCP4 203.0.113.9 10.0.0.1 5678 80\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 5678\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 5678 80 \r\n",
        b"PROXY TCP4 2001:db8::1 ::1 5678 80\r\n",
        b"PROXY TCP6 203.0.113.9 10.0.0.1 5678 80\r\n",
        b"PROXY UDP4 203.0.113.9 10.0.0.1 5678 80\r\n",
        b"PROXY TCP4 203.0.113.256 10.0.0.1 5678 80\r\n",
        b"PROXY TCP6 fe80::1%\x1b[2J ::1 5678 80\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 -1 80\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 65536 80\r\n",
        b"PROXY UNKNOWN" + b" " * MAX_LINE + b"\r\n",
        b"PROXY TCP4 " + b"1" * MAX_LINE,
        version_2(0x11, 0x11, V4),
        version_2(0x22, 0x11, V4),
        version_2(0x21, 0x11, V4[:-1]),
        version_2(0x21, 0x21, V4),
        version_2(0x21, 0x11, V4 + bytes(MAX_BLOCK)),
    ],
)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse(data)


@given(st.one_of(st.binary(), st.binary().map(lambda rest: SIGNATURE + rest), st.binary().map(lambda r: b"PROXY " + r)))
def test_any_bytes_give_an_answer(data: bytes) -> None:
    try:
        found = parse(data)
    except ProxyHeaderError:
        return
    assert found is None or 0 < found[0] <= len(data)
