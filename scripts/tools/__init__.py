"""The tools behind the commands in scripts/. A wheel has those for users as `ollama_auth.tools`.

As in the package, each module imports something by a relative name, or says itself that it is no script for `mitmdump
-s`: mitmproxy refuses to start with it, where it would otherwise serve everybody.
"""

from pathlib import Path

from . import __name__ as name

PACKAGE = name

TOOLS = Path(__file__).resolve().parent
INSTALLED = PACKAGE.startswith("ollama_auth.")
"""Whether this is a wheel, not a checkout or the image."""
REPOSITORY = TOOLS.parent.parent
ADDON = TOOLS.parent / "__init__.py" if INSTALLED else REPOSITORY / "addons" / "auth.py"
"""What `mitmdump -s` takes."""
