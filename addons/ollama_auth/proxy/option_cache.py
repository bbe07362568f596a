"""mitmproxy's options as they are read many times a request: each was copied at each reading."""

from typing import Any

from mitmproxy.optmanager import OptManager

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

PLAIN = (bool, int, float, str, type(None))
"""What no reader can change for the others."""


class CachedOptions:
    """Reads as the options it stands for do. A value is asked for once, and again when any of them has changed."""

    def __init__(self, options: OptManager) -> None:
        vars(self)["_options"] = options
        options.changed.connect(self._forget)

    def __getattr__(self, name: str) -> Any:
        """Called for what is not remembered. Raises AttributeError for what is no option."""
        value = getattr(self._options, name)
        if isinstance(value, PLAIN):
            vars(self)[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._options, name, value)

    def _forget(self, updated: set[str]) -> None:
        for name in updated:
            vars(self).pop(name, None)
