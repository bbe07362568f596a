"""Whether Python and mitmproxy are supported versions."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata

from ollama_auth.process import check_version
from ollama_auth.settings import SettingsError

from .findings import Finding, bad, ok, warn
from .target import Target


def versions(_: Target) -> Iterator[Finding]:
    yield python(sys.version_info[:2], datetime.now(UTC))
    yield mitmproxy(metadata.version("mitmproxy"))


def end_of_support(version: tuple[int, int]) -> datetime:
    """The end of security fixes: 3.N came out in October of 2011 + N, and gets them for five years (PEP 602)."""
    _, minor = version
    return datetime(2016 + minor, 10, 31, tzinfo=UTC)


def python(version: tuple[int, int], now: datetime) -> Finding:
    named = ".".join(map(str, version))
    if now > end_of_support(version):
        return warn("Python", f"{named} gets no security fixes any more", "take a newer one, and remove .venv")
    return ok("Python", named)


def mitmproxy(version: str) -> Finding:
    try:
        check_version(version)
    except SettingsError as error:
        _, _, remedy = str(error).rpartition(": ")
        return bad("mitmproxy", f"{version} has known vulnerabilities, or was not tested", remedy)
    return ok("mitmproxy", version)
