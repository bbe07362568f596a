"""Are Python and mitmproxy good enough, and for how long?"""

import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from ollama_auth import settings
from ollama_auth.addon import check_version

from .findings import Finding, Patient, bad, divided, numbers, ok, warn

PYTHON_ENDS: Mapping[tuple[int, ...], datetime] = {
    (3, 12): datetime(2028, 10, 31, tzinfo=UTC),
    (3, 13): datetime(2029, 10, 31, tzinfo=UTC),
}
"""PEP 693, PEP 719."""
PINS = Path(__file__).parent.with_name("requirements.txt")


def versions(patient: Patient) -> Iterator[Finding]:
    yield python(sys.version_info[:2], datetime.now(UTC))
    pinned = re.search(r"^mitmproxy==(\S+)", PINS.read_text(), re.MULTILINE)
    yield mitmproxy(metadata.version("mitmproxy"), pinned[1] if pinned else "")


def python(version: tuple[int, ...], now: datetime) -> Finding:
    named = ".".join(map(str, version))
    if now > PYTHON_ENDS.get(version, datetime.max.replace(tzinfo=UTC)):
        return warn("Python", f"{named} gets no security fixes any more", "take a newer one, and remove .venv")
    return ok("Python", named)


def mitmproxy(version: str, pinned: str) -> Finding:
    try:
        check_version(version)
    except settings.SettingsError as fault:
        return bad("mitmproxy", *divided(str(fault)))
    if numbers(version) < numbers(pinned):
        return warn("mitmproxy", f"{version}, and {pinned} is what we run", "pip install -r scripts/requirements.txt")
    return ok("mitmproxy", version)
