"""Are Python and mitmproxy good enough, and for how long?"""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from .findings import Finding, Patient, bad, ok, warn

PYTHON_ENDS: Mapping[tuple[int, ...], datetime] = {
    (3, 12): datetime(2028, 10, 31, tzinfo=UTC),
    (3, 13): datetime(2029, 10, 31, tzinfo=UTC),
}
"""PEP 693, PEP 719."""
PINS = Path(__file__).resolve().parents[2] / "requirements.txt"
PROJECT = tomllib.loads((PINS.parent.parent / "pyproject.toml").read_text())["project"]
"""The range it names begins where GHSA-527g-3w9m-29hv is mended, and ends before what was never tried."""


def versions(patient: Patient) -> Iterator[Finding]:
    yield python(sys.version_info[:2], datetime.now(UTC))
    pinned = re.search(r"^mitmproxy==(\S+)", PINS.read_text(), re.MULTILINE)
    yield mitmproxy(metadata.version("mitmproxy"), pinned[1] if pinned else "0")


def python(version: tuple[int, ...], now: datetime) -> Finding:
    named = ".".join(map(str, version))
    if now > PYTHON_ENDS.get(version, datetime.max.replace(tzinfo=UTC)):
        return warn("Python", f"{named} gets no security fixes any more", "take a newer one, and remove .venv")
    return ok("Python", named)


def mitmproxy(version: str, pinned: str) -> Finding:
    needed = next(one for one in map(Requirement, PROJECT["dependencies"]) if one.name == "mitmproxy")
    if not needed.specifier.contains(version):
        return bad("mitmproxy", f"{version} has known holes, or was not tried", f"pip install '{needed}'")
    if Version(version) < Version(pinned):
        return warn("mitmproxy", f"{version}, and {pinned} is what we run", "pip install -r scripts/requirements.txt")
    return ok("mitmproxy", version)
