"""A stand-in for mitmproxy's options."""

from typing import Any

from ollama_auth.option_table import OPTIONS

MITMPROXY = {
    "mode": ["reverse:http://127.0.0.1:11434"],
    "connection_strategy": "lazy",
    "validate_inbound_headers": True,
    "certs": [],
    "ignore_hosts": [],
    "allow_hosts": [],
    "tcp_hosts": [],
    "stream_large_bodies": None,
    "body_size_limit": None,
    "proxy_debug": False,
}


class FakeOptions:
    """mitmproxy's options with ours among them."""

    def __init__(self, **changed: Any) -> None:
        self.deferred: dict[str, Any] = {}
        self._values = MITMPROXY | {option.name: option.default for option in OPTIONS} | changed

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None
