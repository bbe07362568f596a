"""All that must hold before a change goes in; the arguments are pytest's, whose summary comes last.

Without arguments the tests of the gate itself run three times: on uvloop, as scripts/serve has it; without the fast
path that streams take; and, with all others, as mitmdump runs it.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINTERS = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",))
# A file of tests to a process, two at a time: most of them wait for programs to start.
PYTEST = ("pytest", "-n", "2", "--dist", "loadfile")
WAYS = ({"TEST_ON": "uvloop"}, {"TEST_ON": "no-fast-path"})
OF_THE_GATE = ("gate", "edge", "drain", "fail_closed", "http2", "upstream_errors", "clients")


def passes(*command: str, **variables: str) -> bool:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=os.environ | variables, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    checks = [(" ".join(linter), passes(*linter)) for linter in LINTERS]
    if not sys.argv[1:]:
        files = [f"tests/e2e/test_{name}.py" for name in OF_THE_GATE]
        checks += [(f"the gate with {way}", passes(*PYTEST, "-q", *files, **way)) for way in WAYS]
    tests_pass = passes(*PYTEST, *sys.argv[1:])
    failed = [name for name, passed in checks if not passed]
    if failed:
        print(f"failed: {', '.join(failed)} (see above)", file=sys.stderr)
    sys.exit(bool(failed) or not tests_pass)
