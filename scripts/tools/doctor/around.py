"""Can others reach Ollama without passing the gate?"""

import ipaddress
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult

from .findings import Finding, Patient, bad, is_loopback, ok, some, warn

UNITS = tuple(
    Path(folder) / place
    for folder in ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")
    for place in ("ollama.service", "ollama.service.d")
)
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LISTENING = "0A"
"""The state of a socket in /proc/net/tcp (include/net/tcp_states.h of Linux)."""
PATIENCE = 5.0
"""Seconds to connect."""

type Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def around(patient: Patient) -> Iterator[Finding]:
    """Can others reach Ollama without passing the gate?"""
    upstream = patient.upstream
    if not is_loopback(str(upstream.hostname)):
        yield from elsewhere(upstream)
        return
    told = [*told_by(patient.environment.items(), "the environment"), *told_by_systemd()]
    yield from told
    port = upstream.port or (443 if upstream.scheme == "https" else 80)
    hosts = {host for host, at in listening() if at == port} if TABLES[0].exists() else reached(port, own_addresses())
    if places := sorted(str(host) for host in hosts if not host.is_loopback):
        remedy = "have Ollama started with OLLAMA_HOST=127.0.0.1, or close the port to others"
        yield bad("Ollama", f"others reach it around the gate: it listens on {some(places)} port {port}", remedy)
    elif hosts and not told:
        yield ok("Ollama", "nobody but this machine reaches it")


def elsewhere(upstream: SplitResult) -> Iterator[Finding]:
    remedy = "let its firewall admit this machine alone"
    yield warn("Ollama", "it is reached over a network, where others may reach it without the gate", remedy)
    if upstream.scheme == "http":
        remedy = "put TLS in front of it, or use a tunnel or a network of its own"
        yield warn("Ollama", "chats go there in clear text", remedy)


def listening(tables: Iterable[Path] = TABLES) -> Iterator[tuple[Address, int]]:
    """(address, port) of each TCP socket that listens, as Linux tells them; elsewhere none (proc(5))."""
    for table in tables:
        with suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == LISTENING:
                    host, port = local.split(":")
                    yield address(host), int(port, 16)


def address(text: str) -> Address:
    """An address as the kernel prints it: words of four bytes, each a number in this machine's order."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    found = ipaddress.ip_address(b"".join(words))
    return getattr(found, "ipv4_mapped", None) or found


def own_addresses() -> Iterator[Address]:
    """Those that this machine would send from: a UDP socket that is connected has sent nothing (RFC 5737, RFC 3849)."""
    yield ipaddress.ip_address("127.0.0.1")
    for family, anywhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((anywhere, 9))
            yield ipaddress.ip_address(probe.getsockname()[0])


def reached(port: int, hosts: Iterable[Address]) -> set[Address]:
    """Where something of this machine's can be connected to; for systems that don't tell what listens."""
    found = set()
    for host in hosts:
        with suppress(OSError), socket.create_connection((str(host), port), PATIENCE):
            found.add(host)
    return found


def told_by(variables: Iterable[tuple[str, str]], where: str) -> Iterator[Finding]:
    """What variables of Ollama's would open it."""
    for name, value in variables:
        if name == "OLLAMA_ORIGINS" and "*" in re.split(r"[\s,]+", value):
            remedy = "take it away: the gate lets pages in with ollama_cors_origins"
            yield bad(where, "OLLAMA_ORIGINS=* lets any web page use the Ollama on its visitor's machine", remedy)
        if name == "OLLAMA_HOST" and re.match(r"(\w+://)?(0\.0\.0\.0|\[::\]|::|:\d)", value.strip()):
            yield warn(where, "OLLAMA_HOST lets Ollama listen for everybody", "set it to 127.0.0.1")


def told_by_systemd(units: Iterable[Path] = UNITS) -> Iterator[Finding]:
    for unit in units:
        for file in [unit, *sorted(unit.glob("*.conf"))]:
            with suppress(OSError):
                yield from told_by(set_in(file.read_text("utf-8", "replace")), str(file))


def set_in(unit: str) -> Iterator[tuple[str, str]]:
    """The variables that a unit sets (systemd.exec(5)); quotes are round whole assignments."""
    for line in re.findall(r"^\s*Environment\s*=(.*)$", unit, re.MULTILINE):
        for quoted, bare in re.findall(r"\"([^\"]*)\"|([^\s\"]+)", line):
            name, _, value = (quoted or bare).partition("=")
            yield name, value.strip("'\"")
