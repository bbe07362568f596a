"""What we know of the API of Ollama: routes, model names, bodies, streams, usage. Pure functions, no I/O."""

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py
