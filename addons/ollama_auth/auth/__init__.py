"""Who may do what: credentials, keys, policy, limits, and what of a request may go upstream."""

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py
