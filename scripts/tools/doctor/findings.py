"""A finding, and the patient: what scripts/serve would start the gate with."""

import argparse
import ipaddress
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from .. import serve

SOON = timedelta(days=21)
"""Before the end of what ends."""


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """What is so, where, and what to do next; never holds a secret."""

    level: Level
    where: str
    what: str
    next: str = ""


def ok(where: str, what: str) -> Finding:
    return Finding(Level.OK, where, what)


def warn(where: str, what: str, then: str) -> Finding:
    return Finding(Level.WARN, where, what, then)


def bad(where: str, what: str, then: str) -> Finding:
    return Finding(Level.BAD, where, what, then)


@dataclass(frozen=True)
class Patient:
    """What scripts/serve would start: its variables, its options, its endpoint, its certificates."""

    environment: Mapping[str, str]
    options: Mapping[str, str]
    upstream: SplitResult
    address: SplitResult
    open_to_all: bool
    certificates: tuple[Path, ...]

    def given(self, name: str) -> str | None:
        """A value that is an option or an environment variable; the option wins, also where it is empty."""
        return self.options.get(name, self.environment.get(name.upper())) or None


def examine(arguments: Sequence[str]) -> Patient:
    """Raises serve.Problem."""
    split = serve.split(arguments)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--certs", "--cert", action="append", default=[])
    parser.add_argument("--listen-host")
    seen = parser.parse_known_args(split.rest)[0]
    certificates = [*seen.certs, *filter(None, [split.options.get("certs")])]
    file = serve.read_env(serve.ENV_FILE.read_text("utf-8", "replace")) if serve.ENV_FILE.exists() else {}
    environment = serve.merge(os.environ, file)
    return Patient(
        environment,
        split.options,
        urlsplit(serve.endpoint(environment.get("OLLAMA_ENDPOINT"))),
        urlsplit(split.address),
        (seen.listen_host or split.options.get("listen_host") or "") in ("", "0.0.0.0", "::"),  # noqa: S104, compared
        tuple(Path(spec.rpartition("=")[2]).expanduser() for spec in certificates),
    )


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
