"""Whichever file of the package is given to `mitmdump -s`: it guards, or mitmproxy does not start."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.base import BEARER, ROOT
from tests.harness.gate import Gate
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

PACKAGE, TOOLS = ROOT / "addons" / "ollama_auth", ROOT / "scripts" / "tools"
LOAD = """
import logging, sys
from mitmproxy.addons.script import load_script
logging.disable()
print(*("loads" if load_script(path) else "fails" for path in sys.argv[1:]))
"""


def test_every_other_file_fails_to_load() -> None:
    paths = [str(path) for path in (*PACKAGE.rglob("*.py"), *TOOLS.rglob("*.py"))]
    paths = [path for path in paths if not re.search(r"ollama_auth/__init__|tools/(bench/|checks)", path)]
    assert len(paths) > 80
    done = subprocess.run([sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, check=True)
    outcomes = dict(zip(paths, done.stdout.split(), strict=True))
    assert [name for name, outcome in outcomes.items() if outcome != "fails"] == []


def test_the_package_guards(upstream: Upstream) -> None:
    with Gate(upstream.url, script=PACKAGE / "__init__.py") as gate:
        with upstream.untouched():
            assert ask(gate.port, "GET", "/api/tags").status == 401
        assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200


def test_the_package_needs_a_key(upstream: Upstream) -> None:
    with Gate(upstream.url, script=PACKAGE / "__init__.py", key=None, ready=False) as gate:
        assert gate.wait() == 1
        assert "OLLAMA_API_KEY" in gate.output


@pytest.mark.parametrize("program", ["mitmdump", "mitmweb"])
@pytest.mark.parametrize("name", ["addon.py", "http/__init__.py", "ollama_api/routes.py"])
def test_another_file_ends_the_program(upstream: Upstream, program: str, name: str) -> None:
    more = ("--no-web-open-browser",) if program == "mitmweb" else ()
    with Gate(upstream.url, *more, script=PACKAGE / name, program=program, ready=False) as gate:
        assert gate.wait() == 1
        assert "Error logged during startup" in gate.output
        assert "ImportError" in gate.output or "ModuleNotFoundError" in gate.output


@pytest.mark.slow
def test_an_installed_package_guards(upstream: Upstream, tmp_path: Path) -> None:
    """As a wheel has it: no auth.py beside it, and found by Python as well."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "ollama_auth").symlink_to(PACKAGE)
    script = place / "ollama_auth" / "__init__.py"
    with Gate(upstream.url, script=script, env={"PYTHONPATH": str(place)}) as gate:
        assert ask(gate.port, "GET", "/api/tags").status == 401
        assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
