"""Usage: scripts/test [--all | pytest's arguments]

Runs what must hold before a change goes in: ruff, mypy, and the tests, but for those marked `slow`, which take more
than two seconds each; --all runs these too, as CI does. The tests whose outcome depends on how the gate runs (marked
`ways`) run once more on uvloop, as scripts/serve runs it, and those of bodies once more with the fast path off. With
pytest's arguments only the tests that they select run. mypy runs beside the tests, and says what it found behind them.
The last line names what failed.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

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
)
MYPY = Part("mypy", ("mypy",), 0)
ALL = "--all"
BODIES = tuple(f"tests/e2e/test_{name}.py" for name in ("drain", "edge", "http2", "upstream_errors"))


def tests(*, slow: bool) -> tuple[Part, ...]:
    """The tests, and once more those marked `ways`, in each way; the slow ones only if it is asked for."""

    def part(name: str, seconds: tuple[int, int], marks: str, *paths: str, **environment: str) -> Part:
        selected = " and ".join(filter(None, (marks, "" if slow else "not slow")))
        options = (*(("-q",) if marks else ()), *(("-m", selected) if selected else ()))
        return Part(name, (*PYTEST, *options, *paths), seconds[slow], environment)

    return (
        part("tests" if slow else f"tests but slow ones, for which there is {ALL}", (160, 365), ""),
        part("tests on uvloop", (38, 56), "ways", "tests/e2e", "tests/unit/proxy/test_listener.py", TEST_WAY="uvloop"),
        part("tests without the fast path", (30, 44), "ways", *BODIES, TEST_WAY="no fast path"),
    )


def plan(arguments: list[str]) -> tuple[Part, ...]:
    """What runs one after the other; MYPY runs beside it."""
    if arguments in ([], [ALL]):
        return (*LINTERS, *tests(slow=arguments == [ALL]))
    return (*LINTERS, Part(f"tests {' '.join(arguments)}", (*PYTEST, *arguments), 0))


def announce(parts: tuple[Part, ...]) -> None:
    known = all(part.seconds for part in parts)
    about = f"about {sum(part.seconds for part in parts)} s on two idle cores" if known else ""
    print(f"scripts/test runs {len(parts) + 1} parts{', ' * bool(about)}{about}:")
    for number, part in enumerate((*parts, MYPY), 1):
        print(f"  {number}. {part.name}" + f" ({part.seconds} s)" * bool(part.seconds))


def run(part: Part, output: IO[str] | None = None) -> tuple[str | None, float]:
    """Run a part; what failed of it, or None, and its seconds. A part of pytest names the tests that failed."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="checks-") as folder:
        failures = Path(folder, "failures")  # tests/conftest.py writes it.
        environment = os.environ | part.environment | {"TEST_FAILURES": str(failures)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Each worker and each gate would compile everything again.
        done = subprocess.run(
            [sys.executable, "-m", *part.command], cwd=ROOT, env=environment, stdout=output, check=False
        )
        names = failures.read_text().splitlines() if failures.exists() else []
    took = time.monotonic() - begun
    if done.returncode == 0 and not names:
        return None, took
    named = ", ".join(names[:MOST_NAMED]) + f", and {len(names) - MOST_NAMED} more" * (len(names) > MOST_NAMED)
    return f"{part.name} ({named or f'exit status {done.returncode}'})", took


def main(arguments: list[str]) -> int:
    parts = plan(arguments)
    announce(parts)
    begun, of, failures = time.monotonic(), len(parts) + 1, []

    def report(number: int, failure: str | None, seconds: float) -> None:
        print(f"[{number}/{of}] {'FAILED' if failure else 'passed'} in {seconds:.0f} s", flush=True)
        failures.extend([failure] if failure else [])

    with ThreadPoolExecutor(1) as beside, tempfile.TemporaryFile("w+") as output:
        types = beside.submit(run, MYPY, output)
        for number, part in enumerate(parts, 1):
            print(f"\n[{number}/{of}] {part.name}", flush=True)
            report(number, *run(part))
        print(f"\n[{of}/{of}] {MYPY.name}", flush=True)
        failure, seconds = types.result()
        output.seek(0)
        print(output.read(), end="")
        report(of, failure, seconds)
    took = f"in {time.monotonic() - begun:.0f} s"
    print(f"\nFAILED {took}: {'; '.join(failures)}" if failures else f"\npassed {took}: all {of} parts")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
