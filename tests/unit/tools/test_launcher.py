"""scripts/mitmdump.py: mitmdump on uvloop where that is installed, and as it is where not."""

import importlib.util
import subprocess
import sys

import pytest

from tests.harness.base import BEARER, ROOT
from tests.harness.gate import Controlled
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

LAUNCHER = ROOT / "scripts" / "tools" / "mitmdump.py"
LOOP = "import asyncio; result = type(asyncio.get_running_loop()).__module__"


def launch(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run it in a Python that has run `before`."""
    code = f"import runpy, sys\n{before}\nsys.argv = [{str(LAUNCHER)!r}, *{arguments!r}]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.slow
def test_without_uvloop_it_says_so() -> None:
    done = launch("--version", before="sys.modules['uvloop'] = None")
    assert done.stdout.startswith("Mitmproxy:")
    assert "without uvloop" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("uvloop"), reason="uvloop is not installed")
def test_with_uvloop(upstream: Upstream) -> None:
    """The loop is uvloop's, and the gate does what it does."""
    with Controlled(upstream.url, program=str(LAUNCHER)) as gate:
        assert gate.do(LOOP) == "'uvloop'"
        assert ask(gate.port, "GET", "/api/version", BEARER).status == 200
        assert ask(gate.port, "GET", "/api/version").status == 401
        gate.signal()
        assert gate.wait() == 0


def test_what_is_imported_when_it_is_used(upstream: Upstream) -> None:
    """mitmproxy's page at mitm.it has the settings that mitmproxy gave it at the start: where the certificate is."""
    with Controlled(upstream.url, program=str(LAUNCHER)) as gate:
        imported = "import sys; result = [one in sys.modules for one in ('ldap3.core', 'flask')]"
        assert gate.do(imported) == "[False, False]"
        ldap = "from mitmproxy.addons import proxyauth as p; result = p.ldap3.utils.conv.escape_filter_chars('*')"
        assert gate.do(ldap) == repr("\\2a")
        page = """
            from wsgiref.util import setup_testing_defaults
            from mitmproxy.addons import onboarding
            environ = {"PATH_INFO": "/cert/pem"}
            setup_testing_defaults(environ)
            answer = onboarding.app(environ, lambda status, fields: None)
            result = b"".join(answer).startswith(b"-----BEGIN CERTIFICATE")
        """
        assert gate.do(page) == "True"
        assert gate.do(imported) == "[True, True]"
        assert gate.do("import gc; result = gc.isenabled()") == "True"
        assert ask(gate.port, "GET", "/api/version", BEARER).status == 200


def test_wrong_arguments_are_mitmdumps_to_refuse() -> None:
    done = launch("--no-such-option")
    assert done.returncode == 1
    assert done.stderr.startswith("ollama-auth: unrecognized arguments: --no-such-option; ")
    assert done.stderr.count("\n") == 1
