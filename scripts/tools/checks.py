"""Usage: scripts/test [pytest's arguments]

Runs everything that must hold before a change goes in: ruff, mypy, and the tests. Without arguments the tests whose
outcome depends on how the gate runs (marked `ways`) run twice more: on uvloop, as scripts/serve runs it, and with the
fast path off. With arguments only the tests that pytest selects by them run. The last line names what failed.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# More workers than cores, because most tests wait for programs to start and to answer. A file's tests share gates.
# Files keep their order, where the long ones, tests/e2e, come first: xdist would begin with those that have most tests.
PYTEST = ("pytest", "-n", str((os.cpu_count() or 2) + 1), "--dist", "loadfile", "--no-loadscope-reorder")
MOST_NAMED = 5
"""How many failed tests the last line names."""


@dataclass(frozen=True)
class Part:
    """One command, with the seconds that it takes on two idle cores, about."""

    name: str
    command: tuple[str, ...]
    seconds: int
    environment: Mapping[str, str] = field(default_factory=dict)


LINTERS = (
    Part("ruff check", ("ruff", "check", "--quiet"), 1),
    Part("ruff format", ("ruff", "format", "--check", "--quiet"), 1),
    Part("mypy", ("mypy",), 40),
)
TESTS = Part("tests", PYTEST, 255)
WAYS = (
    Part("tests on uvloop", (*PYTEST, "-q", "-m", "ways", "tests/e2e"), 35, {"TEST_WAY": "uvloop"}),
    Part("tests without the fast path", (*PYTEST, "-q", "-m", "ways", "tests/e2e"), 35, {"TEST_WAY": "no fast path"}),
)


def plan(arguments: list[str]) -> tuple[Part, ...]:
    if not arguments:
        return (*LINTERS, TESTS, *WAYS)
    return (*LINTERS, Part(f"tests {' '.join(arguments)}", (*PYTEST, *arguments), 0))


def announce(parts: tuple[Part, ...]) -> None:
    about = f"about {sum(part.seconds for part in parts)} s on two idle cores" if TESTS in parts else ""
    print(f"scripts/test runs {len(parts)} parts{', ' * bool(about)}{about}:")
    for number, part in enumerate(parts, 1):
        print(f"  {number}. {part.name}" + f" ({part.seconds} s)" * bool(part.seconds))


def run(part: Part) -> str | None:
    """Run a part; what failed of it, or None. A part of pytest names the tests that failed."""
    with tempfile.TemporaryDirectory(prefix="checks-") as folder:
        failures = Path(folder, "failures")  # tests/conftest.py writes it.
        environment = os.environ | part.environment | {"TEST_FAILURES": str(failures)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Each worker and each gate would compile everything again.
        done = subprocess.run([sys.executable, "-m", *part.command], cwd=ROOT, env=environment, check=False)
        names = failures.read_text().splitlines() if failures.exists() else []
    if done.returncode == 0 and not names:
        return None
    named = ", ".join(names[:MOST_NAMED]) + f", and {len(names) - MOST_NAMED} more" * (len(names) > MOST_NAMED)
    return f"{part.name} ({named or f'exit status {done.returncode}'})"


def main(arguments: list[str]) -> int:
    parts = plan(arguments)
    announce(parts)
    begun, failed = time.monotonic(), []
    for number, part in enumerate(parts, 1):
        print(f"\n[{number}/{len(parts)}] {part.name}", flush=True)
        at = time.monotonic()
        if failure := run(part):
            failed.append(failure)
        print(
            f"[{number}/{len(parts)}] {'FAILED' if failure else 'passed'} in {time.monotonic() - at:.0f} s", flush=True
        )
    took = f"in {time.monotonic() - begun:.0f} s"
    print(f"\nFAILED {took}: {'; '.join(failed)}" if failed else f"\npassed {took}: all {len(parts)} parts")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
