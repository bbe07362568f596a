"""Ollama's API: routes, model names, request bodies, streams, usage. Pure functions, no I/O."""

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py
