"""All that must hold before a change goes in; the arguments are pytest's, whose summary comes last."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINTERS = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",))


def passes(*command: str) -> bool:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    failed = [" ".join(linter) for linter in LINTERS if not passes(*linter)]
    # A file of tests to a process, two at a time: most of them wait for programs to start.
    tests_pass = passes("pytest", "-n", "2", "--dist", "loadfile", *sys.argv[1:])
    if failed:
        print(f"failed: {', '.join(failed)} (see above)", file=sys.stderr)
    sys.exit(bool(failed) or not tests_pass)
