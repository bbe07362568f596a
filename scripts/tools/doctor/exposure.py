"""Whether others can reach Ollama without passing the gate."""

import ipaddress
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult

from .findings import Finding, bad, ok, some, warn
from .target import Target, is_loopback

UNITS = tuple(
    Path(folder) / place
    for folder in ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")
    for place in ("ollama.service", "ollama.service.d")
)
SOCKET_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LISTENING = "0A"
"""A socket state in these tables (include/net/tcp_states.h of Linux)."""
CONNECT_TIMEOUT = 5.0
"""Seconds."""

type Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def exposure(target: Target) -> Iterator[Finding]:
    """Find the addresses at which Ollama listens, and settings that make it listen on more."""
    upstream = target.upstream
    if target.launched.demo:
        return
    if not is_loopback(str(upstream.hostname)):
        yield from remote(upstream)
        return
    risky = [*risky_variables(target.environment.items(), "the environment"), *risky_units()]
    yield from risky
    port = upstream.port or (443 if upstream.scheme == "https" else 80)
    if SOCKET_TABLES[0].exists():
        hosts = {host for host, at in listening_sockets() if at == port}
    else:
        hosts = connectable(port, own_addresses())
    if places := sorted(str(host) for host in hosts if not host.is_loopback):
        remedy = "have Ollama started with OLLAMA_HOST=127.0.0.1, or close the port to others"
        yield bad("Ollama", f"others reach it around the gate: it listens on {some(places)} port {port}", remedy)
    elif hosts and not risky:
        yield ok("Ollama", "only this machine can reach it")


def remote(upstream: SplitResult) -> Iterator[Finding]:
    """Warn of the network between the gate and Ollama."""
    remedy = "let its firewall admit this machine alone"
    yield warn("Ollama", "it is reached over a network, where others may reach it without the gate", remedy)
    if upstream.scheme == "http":
        remedy = "put TLS in front of it, or use a tunnel or a network of its own"
        yield warn("Ollama", "chats go there in clear text", remedy)


def listening_sockets(tables: Iterable[Path] = SOCKET_TABLES) -> Iterator[tuple[Address, int]]:
    """(address, port) of each listening TCP socket, from Linux's tables (proc_pid_net(5)); none on other systems."""
    for table in tables:
        with suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == LISTENING:
                    host, port = local.split(":")
                    yield parse_address(host), int(port, 16)


def parse_address(text: str) -> Address:
    """Parse an address as the kernel prints it: in hex, as 32-bit words in the machine's byte order."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    found = ipaddress.ip_address(b"".join(words))
    return getattr(found, "ipv4_mapped", None) or found


def own_addresses() -> Iterator[Address]:
    """The loopback address, and those from which this machine sends to others.

    Connecting a UDP socket sends nothing; the peers are addresses for documentation (RFC 5737, RFC 3849).
    """
    yield ipaddress.ip_address("127.0.0.1")
    for family, anywhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((anywhere, 9))
            yield ipaddress.ip_address(probe.getsockname()[0])


def connectable(port: int, hosts: Iterable[Address]) -> set[Address]:
    """The hosts that accept a connection on the port; for systems without SOCKET_TABLES."""
    found = set()
    for host in hosts:
        with suppress(OSError), socket.create_connection((str(host), port), CONNECT_TIMEOUT):
            found.add(host)
    return found


def risky_variables(variables: Iterable[tuple[str, str]], where: str) -> Iterator[Finding]:
    """Warn of variables that open Ollama to others."""
    for name, value in variables:
        if name == "OLLAMA_ORIGINS" and "*" in re.split(r"[\s,]+", value):
            remedy = "remove it: the gate admits web pages with ollama_cors_origins"
            yield bad(where, "OLLAMA_ORIGINS=* lets any web page use the Ollama on its visitor's machine", remedy)
        if name == "OLLAMA_HOST" and re.match(r"(\w+://)?(0\.0\.0\.0|\[::\]|::|:\d)", value.strip()):
            yield warn(where, "OLLAMA_HOST makes Ollama listen on all addresses", "set it to 127.0.0.1")


def risky_units(units: Iterable[Path] = UNITS) -> Iterator[Finding]:
    """Warn of such variables in the systemd units of Ollama and their drop-in files."""
    for unit in units:
        for file in [unit, *sorted(unit.glob("*.conf"))]:
            with suppress(OSError):
                yield from risky_variables(variables_of_unit(file.read_text("utf-8", "replace")), str(file))


def variables_of_unit(unit: str) -> Iterator[tuple[str, str]]:
    """(name, value) of each variable that a unit sets. Quotes enclose whole assignments (systemd.exec(5))."""
    for line in re.findall(r"^\s*Environment\s*=(.*)$", unit, re.MULTILINE):
        for quoted, bare in re.findall(r"\"([^\"]*)\"|([^\s\"]+)", line):
            name, _, value = (quoted or bare).partition("=")
            yield name, value.strip("'\"")
