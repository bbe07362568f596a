"""An authenticating gateway for Ollama, as a mitmproxy addon. Start reading in `addon.py`."""

__version__ = "0.1.0"
