"""An authenticating gateway for Ollama, as a mitmproxy addon. Start reading in `addon.py`.

`mitmdump -s` loads this file as it loads `addons/auth.py`, and it guards. Every other module of the package imports
something by a relative name, which fails outside of a package: mitmproxy refuses to start with such a module, where it
would otherwise serve everybody.
"""

__version__ = "0.1.0"

IMPORTED = True
"""For modules that need nothing else of the package."""

if __name__.startswith("__mitmproxy_script__"):
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # mitmproxy put the folder of this file there.
    from ollama_auth.addon import OllamaAuth

    addons = [OllamaAuth()]
