"""Logs, metrics and the status listener. Nothing here changes a request."""

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py
