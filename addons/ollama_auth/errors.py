"""The root of all errors that this package raises on purpose."""

from . import IMPORTED  # noqa: F401, not a script: see __init__.py


class OllamaAuthError(Exception):
    """Base class. Messages say where, what is wrong and what to do next, never a secret."""
