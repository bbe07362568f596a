"""Whether Python and mitmproxy are supported versions."""

import re
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from ..serve import REPOSITORY
from .findings import Finding, bad, ok, warn
from .target import Target

PINS = REPOSITORY / "scripts" / "requirements.txt"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
"""Its range of mitmproxy begins at the fix of GHSA-527g-3w9m-29hv and ends before the next, untested major version."""


def versions(_: Target) -> Iterator[Finding]:
    yield python(sys.version_info[:2], datetime.now(UTC))
    pinned = re.search(r"^mitmproxy==(\S+)", PINS.read_text(), re.MULTILINE)
    yield mitmproxy(metadata.version("mitmproxy"), pinned[1] if pinned else "0")


def end_of_support(version: tuple[int, int]) -> datetime:
    """The end of security fixes: 3.N came out in October of 2011 + N, and gets them for five years (PEP 602)."""
    _, minor = version
    return datetime(2016 + minor, 10, 31, tzinfo=UTC)


def python(version: tuple[int, int], now: datetime) -> Finding:
    named = ".".join(map(str, version))
    if now > end_of_support(version):
        return warn("Python", f"{named} gets no security fixes any more", "take a newer one, and remove .venv")
    return ok("Python", named)


def mitmproxy(version: str, pinned: str) -> Finding:
    """Compare with the range in pyproject.toml and with the version that the tests ran on."""
    needed = next(one for one in map(Requirement, PROJECT["dependencies"]) if one.name == "mitmproxy")
    if not needed.specifier.contains(version):
        return bad("mitmproxy", f"{version} has known vulnerabilities, or was not tested", f"pip install '{needed}'")
    if Version(version) < Version(pinned):
        return warn("mitmproxy", f"{version}, and {pinned} is what we run", "pip install -r scripts/requirements.txt")
    return ok("mitmproxy", version)
