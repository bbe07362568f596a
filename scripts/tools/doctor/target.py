"""The gate under examination: what scripts/serve would start with the same arguments."""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from .. import launch, serve
from ..launch import Launch


@dataclass(frozen=True)
class Target:
    """The options and variables of a gate, its endpoint and its own address."""

    launched: Launch
    environment: Mapping[str, str]
    upstream: SplitResult
    address: SplitResult

    def value(self, name: str) -> str | None:
        """An option, else its environment variable; None if neither is set or the one that counts is empty."""
        return self.launched.value(name, self.environment)


def read_target(arguments: Sequence[str]) -> Target:
    """Read the arguments, the environment and the files as scripts/serve does. Raises ToolError."""
    launched = launch.read(arguments)
    environment = serve.merge(os.environ, serve.read_env_file())
    return Target(launched, environment, urlsplit(launched.upstream(environment)), urlsplit(launched.address))


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the host."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
