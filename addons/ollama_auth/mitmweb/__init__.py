"""What mitmweb and mitmproxy show of requests: labels, commands, conversations."""

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py
