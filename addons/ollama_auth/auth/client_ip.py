"""Whose request it is: the address of the client, also behind proxies that the operator trusts. Pure.

Each proxy adds the address that a request came from at the end of a header field, so from the right on everything is
true up to the first address that is no trusted proxy: that is the client. What is left of it may be made up.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ..errors import OllamaAuthError
from ..http.head import TOKEN, Fields, values

type Network = IPv4Network | IPv6Network

FORWARDED_FOR = "X-Forwarded-For"
HEADERS = (FORWARDED_FOR, "Forwarded", "X-Real-IP", "CF-Connecting-IP")
"""Fields in which proxies name the client."""
HEADER_NAMES = frozenset(header.lower() for header in HEADERS)
MAX_HOPS = 32
"""Addresses of a request that are looked at."""
MAX_HOP = 1024
"""Bytes of one of them; an element of Forwarded (RFC 7239) may hold a long host name."""

_MAPPED = IPv6Network("::ffff:0:0/96")
_PORT = rb"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
_NODE = re.compile(
    rb"\[(?P<v6>[0-9A-Fa-f:.]+)\]%s|(?P<v4>[0-9.]+)%s|(?P<bare>[0-9A-Fa-f:.]+)" % (_PORT, _PORT)
)  # RFC 7239 section 6, without its `unknown` and `_names`, and IPv6 without brackets as well.
_PAIR = re.compile(rb'[ \t]*(%s)=(?:"([^"\\]*)"|([^",; \t\\]+))[ \t]*' % TOKEN.pattern)


class ProxyError(OllamaAuthError, ValueError):
    """Trusted proxies that can't be right; the message says why."""


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The proxies that are believed, and the header field in which they name the client."""

    networks: tuple[Network, ...] = ()
    header: str = FORWARDED_FOR

    def __contains__(self, address: str) -> bool:
        if not self.networks:
            return False
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return any(parsed in network for network in self.networks)

    def client_of(self, peer: str, fields: Fields) -> str:
        """Return the address of the client whose request with these header fields came from `peer`."""
        client = peer
        if client in self:
            lines = b",".join(values(fields, self.header.lower().encode()))
            parse = _forwarded if self.header.lower() == "forwarded" else _address
            for hop in reversed(lines.rsplit(b",", MAX_HOPS)):
                address = parse(hop) if len(hop) <= MAX_HOP else None
                if address is None:
                    break
                client = address
                if client not in self:
                    break
        return client


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return the addresses and networks of texts in which commas separate them. Raises ProxyError."""
    return tuple(_network(item.strip()) for text in texts for item in text.split(",") if item.strip())


def _network(text: str) -> Network:
    try:
        found = ip_network(text, strict=False)
    except ValueError:
        raise ProxyError(f"{text!r} is no address and no network, such as 10.0.0.2 or 10.0.0.0/8") from None
    if str(ip_address(text.partition("/")[0])) != str(found.network_address):
        raise ProxyError(f"{text!r} is an address within a network: write {found}, or the address alone")
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        found = IPv4Network((int(found.network_address) & 0xFFFFFFFF, found.prefixlen - 96))
    if not found.prefixlen:
        raise ProxyError(f"{text!r} is everybody, who could then choose an address: name the proxies")
    return found


@lru_cache(maxsize=1024)
def normal(address: str) -> str:
    """Return the one way to write an address: IPv6 in its short form, and IPv4 in IPv6 as IPv4. Raises ValueError."""
    parsed = ip_address(address)
    return str((isinstance(parsed, IPv6Address) and parsed.ipv4_mapped) or parsed)


def network_of(address: str) -> str:
    """Return what clients are counted by: an IPv4 address, or the /64 network that an IPv6 host usually owns."""
    if ":" not in address:
        return address
    parsed = IPv6Address(address.partition("%")[0])
    return str(parsed.ipv4_mapped or IPv6Network((int(parsed), 64), strict=False))


def is_private(address: str) -> bool:
    """Tell whether a text is an address that is none of the Internet's, such as that of a container."""
    try:
        return not ip_address(address).is_global
    except ValueError:
        return False


def names_client(names: Iterable[str]) -> str | None:
    """Return the first of HEADERS that is among these names, in lower case."""
    return next((header for header in HEADERS if header.lower() in names), None)


def _address(hop: bytes) -> str | None:
    """`1.2.3.4`, `1.2.3.4:5678`, `::1`, `[::1]`, `[::1]:80` -> the address; None for anything else."""
    if not (found := _NODE.fullmatch(hop.strip(b" \t"))):
        return None
    try:
        return normal((found["v6"] or found["v4"] or found["bare"]).decode("ascii"))
    except ValueError:
        return None


def _forwarded(element: bytes) -> str | None:
    """`for="[2001:db8::1]:4711";proto=https` -> the address.

    A quoted comma or semicolon, which no proxy sends, makes an element garbage, and never another element.
    """
    pairs = [_PAIR.fullmatch(pair) for pair in element.split(b";") if pair.strip(b" \t")]
    found = [pair[2] or pair[3] for pair in pairs if pair and pair[1].lower() == b"for"]
    return _address(found[0]) if all(pairs) and len(found) == 1 and found[0] else None
