"""Bounded HTTP under mitmproxy: layers, protocols, connections, the fast path. It knows decisions, not rules."""

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py
