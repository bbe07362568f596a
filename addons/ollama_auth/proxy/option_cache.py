"""A cache of mitmproxy's options, which copies each value whenever it is read: several times a request."""

from typing import Any

from mitmproxy.optmanager import OptManager

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py


class CachedOptions:
    """Read and write options like the OptManager behind it; a value is fetched once, and again after it has changed."""

    def __init__(self, options: OptManager) -> None:
        vars(self)["_options"] = options
        options.changed.connect(self._forget)

    def __getattr__(self, name: str) -> Any:
        """Fetch a value that is not cached. Raises AttributeError if there is no option of that name."""
        value = getattr(self._options, name)
        if isinstance(value, (bool, int, float, str, type(None))):  # Immutable, so readers can share it.
            vars(self)[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._options, name, value)

    def _forget(self, updated: set[str]) -> None:
        for name in updated:
            vars(self).pop(name, None)
