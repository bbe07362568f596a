"""What is told of requests: logs, metrics, the status page. It changes nothing about them."""

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py
