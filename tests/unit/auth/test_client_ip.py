"""The address of a client: of its peer, or what trusted proxies say of it, and nothing that a client can make up."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.auth.client_ip import (
    MAX_HOPS,
    ProxyError,
    TrustedProxies,
    is_private,
    names_client,
    network_of,
    normal,
    parse_networks,
)
from tests.harness.cases import each_of

PEER = "10.0.0.1"
PROXIES = TrustedProxies(parse_networks(["10.0.0.0/8,2001:db8:ffff::/48", "192.0.2.7"]))


def client(*lines: str, header: str = "X-Forwarded-For", peer: str = PEER) -> str:
    proxies = TrustedProxies(PROXIES.networks, header)
    return proxies.client_of(peer, tuple((header.upper().encode(), line.encode("latin-1")) for line in lines))


@each_of(
    ("lines", "expected"),
    [
        (("203.0.113.9",), "203.0.113.9"),
        (("203.0.113.9:5678",), "203.0.113.9"),
        (("2001:db8::1",), "2001:db8::1"),
        (("2001:DB8:0:0::1",), "2001:db8::1"),
        (("[2001:db8::1]",), "2001:db8::1"),
        (("[2001:db8::1]:80",), "2001:db8::1"),
        (("::ffff:203.0.113.9",), "203.0.113.9"),
        (("[::ffff:cb00:7109]:80",), "203.0.113.9"),
        # The rightmost that is no trusted proxy.
        (("198.51.100.1, 203.0.113.9",), "203.0.113.9"),
        (("198.51.100.1,\t203.0.113.9 ,10.1.1.1,192.0.2.7:99",), "203.0.113.9"),
        (("198.51.100.1, 203.0.113.9, ::ffff:10.1.1.1, [2001:db8:ffff::5]:1",), "203.0.113.9"),
        (("198.51.100.1", "203.0.113.9"), "203.0.113.9"),
        (("198.51.100.1, 203.0.113.9", "10.1.1.1", "10.1.1.2"), "203.0.113.9"),
        # All are trusted: the one that is farthest away.
        (("10.2.0.2, 10.2.0.3",), "10.2.0.2"),
        # What is no address is not believed, nor what stands on the left of it.
        ((), PEER),
        (("",), PEER),
        ((" ",), PEER),
        (("203.0.113.9,",), PEER),
        (("203.0.113.9", ""), PEER),
        ((",203.0.113.9",), "203.0.113.9"),
        (("unknown",), PEER),
        (("203.0.113.9, unknown",), PEER),
        (("203.0.113.9, _hidden, 10.1.1.1",), "10.1.1.1"),
        (("unknown, 203.0.113.9",), "203.0.113.9"),
        (("203.0.113.9, localhost",), PEER),
        (("203.0.113.9 198.51.100.1",), PEER),
        (("203.0.113.256",), PEER),
        (("203.0.113.09",), PEER),
        (("203.0.113.9/32",), PEER),
        (("203.0.113.9:",), PEER),
        (("203.0.113.9:123456",), PEER),
        (("203.0.113",), PEER),
        (("3405803785",), PEER),
        (("[203.0.113.9",), PEER),
        (("2001:db8::1]:80",), PEER),
        (("[2001:db8::1]80",), PEER),
        (("fe80::1%eth0",), PEER),
        (("\xb2\xb0\xb3.0.113.9",), PEER),
        (("<script>",), PEER),
        (("a" * 30_000,), PEER),
        (("," * 30_000,), PEER),
        (("203.0.113.9, " * 2_000 + "198.51.100.1",), "198.51.100.1"),
        (("203.0.113.9" + ", 10.1.1.1" * (MAX_HOPS + 5),), "10.1.1.1"),
    ],
)
def test_a_list_of_addresses(lines: tuple[str, ...], expected: str) -> None:
    assert client(*lines) == expected


@each_of(
    ("lines", "expected"),
    [
        (("for=203.0.113.9",), "203.0.113.9"),
        (("For=203.0.113.9;Proto=https;by=10.0.0.1",), "203.0.113.9"),
        (('proto=https; for="203.0.113.9:4711" ;',), "203.0.113.9"),
        (('for="203.0.113.9:_port"',), "203.0.113.9"),
        (('for="[2001:db8::1]:4711"',), "2001:db8::1"),
        (("for=[2001:db8::1]:4711",), "2001:db8::1"),
        (('for=198.51.100.1, for=203.0.113.9;host="a.example:443", for="[2001:db8:ffff::1]"',), "203.0.113.9"),
        (("for=198.51.100.1", "for=203.0.113.9"), "203.0.113.9"),
        (("203.0.113.9",), PEER),
        (("for=unknown",), PEER),
        (('for="_gazonk"',), PEER),
        (("for=203.0.113.9, for=_mallory",), PEER),
        (("for=203.0.113.9;for=198.51.100.1",), PEER),
        (("proto=https",), PEER),
        (("for=",), PEER),
        (('for=""',), PEER),
        (('for="203.0.113.9',), PEER),
        ((f'for=203.0.113.9;x="{"a" * 2000}"',), PEER),
        # A client sends the first part, and may not break what its proxy adds.
        (('for="198.51.100.1;x=", for=203.0.113.9',), "203.0.113.9"),
        (('for="x, for=203.0.113.9;host="a"',), "203.0.113.9"),
        # Nor is a comma in quotes the begin of an element.
        (('for=203.0.113.9;host="a, for=198.51.100.1"',), PEER),
        (('for=203.0.113.9;host="a, for=198.51.100.1;x=y"',), PEER),
        (('for=203.0.113.9;host="a, for=198.51.100.1, b"',), PEER),
        (('for=203.0.113.9;host="a\\", for=198.51.100.1"',), PEER),
    ],
)
def test_forwarded(lines: tuple[str, ...], expected: str) -> None:
    assert client(*lines, header="Forwarded") == expected


@each_of("header", ["X-Real-IP", "CF-Connecting-IP", "True-Client-IP"])
def test_a_header_of_one_address(header: str) -> None:
    assert client("203.0.113.9", header=header) == "203.0.113.9"
    assert client("198.51.100.1", "203.0.113.9", header=header) == "203.0.113.9", "the one that was added last"
    assert client("unknown", header=header) == PEER


def test_only_that_header_is_read() -> None:
    fields = ((b"X-Forwarded-For", b"198.51.100.1"), (b"x-real-ip", b"203.0.113.9"))
    assert TrustedProxies(PROXIES.networks, "X-Real-IP").client_of(PEER, fields) == "203.0.113.9"


@each_of("peer", ["203.0.113.1", "11.0.0.1", "::1", "fe80::1%eth0", "unknown", ""])
def test_who_is_not_trusted_is_not_believed(peer: str) -> None:
    assert client("198.51.100.1", peer=peer) == peer
    assert peer not in PROXIES
    assert "10.1.2.3" not in TrustedProxies()


@given(st.lists(st.binary(max_size=60), max_size=3), st.sampled_from(["X-Forwarded-For", "Forwarded"]))
def test_anything_gives_an_address(lines: list[bytes], header: str) -> None:
    found = TrustedProxies(PROXIES.networks, header).client_of(PEER, tuple((header.encode(), one) for one in lines))
    assert normal(found) == found


@given(st.text(max_size=200), st.ip_addresses())
def test_what_a_client_sends_changes_nothing(sent: str, address: Any) -> None:
    """The proxy appends to it."""
    expected = normal(str(address))
    if expected not in PROXIES:
        assert client(sent.encode("utf-8").decode("latin-1") + f", {address}") == expected
        element = f'for="[{address}]:80"' if address.version == 6 else f"for={address}"
        assert client(sent.encode("utf-8").decode("latin-1") + ", " + element, header="Forwarded") == expected


# Networks.


@each_of(
    ("texts", "expected"),
    [
        ([], []),
        (["", " , "], []),
        (["10.0.0.2", "10.1.0.0/16"], ["10.0.0.2/32", "10.1.0.0/16"]),
        ([" 10.0.0.2 ,::1"], ["10.0.0.2/32", "::1/128"]),
        (["10.0.0.0/255.0.0.0"], ["10.0.0.0/8"]),
        (["::ffff:10.0.0.0/104", "::ffff:10.0.0.2"], ["10.0.0.0/8", "10.0.0.2/32"]),
        (["2001:DB8::/32"], ["2001:db8::/32"]),
    ],
)
def test_networks(texts: list[str], expected: list[str]) -> None:
    assert list(map(str, parse_networks(texts))) == expected


@each_of(
    ("text", "said"),
    [
        ("nginx", "no address"),
        ("10.0.0.1:80", "no address"),
        ("10.0.0", "no address"),
        ("10.0.0.0/33", "no address"),
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("0.0.0.0/0", "everybody"),
        ("::/0", "everybody"),
        ("::ffff:0.0.0.0/96", "everybody"),
    ],
)
def test_what_is_no_network(text: str, said: str) -> None:
    with pytest.raises(ProxyError, match=said):
        parse_networks(["10.0.0.2", text])


@each_of(
    ("address", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("unknown", "unknown"),
        ("", ""),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("2001:DB8:1:2::1", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
    ],
)
def test_a_network(address: str, expected: str) -> None:
    assert network_of(address) == expected


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_all_addresses_of_a_64_are_one_client(address: Any, host: int) -> None:
    neighbour = str(type(address)(int(address) >> 64 << 64 | host))
    if not address.ipv4_mapped and not type(address)(neighbour).ipv4_mapped:
        assert network_of(str(address)) == network_of(neighbour)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_one_client_also_on_a_socket_of_ipv6(address: Any) -> None:
    assert network_of(f"::ffff:{address}") == network_of(str(address)) == str(address)


@each_of(
    ("address", "private"),
    [
        *(("127.0.0.1", True), ("172.17.0.1", True), ("100.64.0.1", True), ("fe80::1%eth0", True)),
        *(("8.8.8.8", False), ("2606:4700::1", False), ("unknown", False), ("", False)),
    ],
)
def test_addresses_of_neighbours(address: str, private: bool) -> None:
    assert is_private(address) is private


def test_fields_that_name_a_client() -> None:
    assert names_client(("accept-language", "x-real-ip", "x-forwarded-for")) == "X-Forwarded-For"
    assert names_client(("accept-language", "cf-connecting-ip")) == "CF-Connecting-IP"
    assert names_client(("accept-language",)) is None
