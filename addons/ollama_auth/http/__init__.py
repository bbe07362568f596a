"""HTTP as its RFCs have it: heads, CORS, responses. Pure functions, no I/O."""

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py
