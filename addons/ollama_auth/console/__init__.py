"""The console: the page on the status listener, and the JSON under /console/ that it and other programs ask for."""

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py
