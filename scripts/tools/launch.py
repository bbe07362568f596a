"""What a gate is started with: the command line merged with mitmproxy's config files, exactly as mitmproxy merges them.

Later ones win: `--set`, then config.yaml, then config.yml (both in the directory that `--set confdir` names), then all
other arguments of the command line (mitmproxy/tools/main.py). An option wins over its environment variable.
"""

import argparse
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from mitmproxy import exceptions, optmanager
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.tools import cmdline

from ollama_auth import option_table, settings

from .terminal import ToolError

DEFAULT_ENDPOINT = "127.0.0.1"
OLLAMA_PORT = 11434
DEFAULT_PORT = 8081
CONFIG_FILES = ("config.yaml", "config.yml")


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ToolError where others exit."""

    def error(self, message: str) -> NoReturn:
        raise ToolError(message)


@dataclass(frozen=True)
class Launch:
    """The arguments of scripts/serve, and the options that mitmproxy will have."""

    demo: bool
    workers: int
    arguments: Sequence[str]
    """Those for mitmdump."""
    options: Options
    mode: ReverseMode | None
    """The mode that an option sets; None leaves it to OLLAMA_ENDPOINT."""
    mode_in_arguments: bool
    in_arguments: frozenset[str]
    """Names of the options that --set sets."""
    config_files: Sequence[Path]
    """Those that exist."""

    @property
    def listen_host(self) -> str:
        """The address to listen on; empty for all."""
        host: str = self.options.listen_host
        return self.mode.listen_host(host) if self.mode else host

    @property
    def address(self) -> str:
        """The URL at which a client on this machine reaches the gate."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.listen_host, self.listen_host)  # noqa: S104
        scheme = "https" if self.options.certs else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def port(self) -> int:
        """The port to listen on, which may be none that there is."""
        port = DEFAULT_PORT if self.options.listen_port is None else self.options.listen_port
        return int(self.mode.listen_port(port) or port) if self.mode else int(port)

    @property
    def certificates(self) -> list[Path]:
        """The files of `certs`, each of which is [DOMAIN=]PATH."""
        return [Path(spec.rpartition("=")[2]).expanduser() for spec in self.options.certs]

    def upstream(self, environment: Mapping[str, str]) -> str:
        """The URL of Ollama. Raises ToolError."""
        base = self.options.ollama_base_path.removesuffix("/")
        if self.mode:
            host, port = self.mode.address
            return f"{self.mode.scheme}://{f'[{host}]' if ':' in host else host}:{port}{base}"
        url = endpoint(environment.get("OLLAMA_ENDPOINT"))
        return url if urlsplit(url).path else url + base

    def is_set(self, name: str, environment: Mapping[str, str]) -> bool:
        """Whether the option or its environment variable is there, even if empty."""
        return getattr(self.options, name) is not None or name.upper() in environment

    def has_keys(self, environment: Mapping[str, str]) -> bool:
        """Whether there is a keys file, or the one key is set, even to nothing."""
        single = any(self.is_set(name, environment) for name in ("ollama_api_key", "ollama_api_key_file"))
        return single or settings.keys_file_of(self.options, environment) is not None

    def value(self, name: str, environment: Mapping[str, str]) -> str | None:
        """The option, else its environment variable; an empty option hides the variable."""
        option: str | None = getattr(self.options, name)
        return (environment.get(name.upper()) if option is None else option) or None


def endpoint(text: str | None) -> str:
    """OLLAMA_ENDPOINT -> a URL for mitmproxy, which would take one without a scheme for https. Raises ToolError.

    Without a port it is Ollama's own; with https it is that of whatever stands before Ollama, 443.
    """
    url = (text or "").strip() or DEFAULT_ENDPOINT
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if valid and "@" not in parts.netloc and not parts.query + parts.fragment:
            path = option_table.base_path("OLLAMA_ENDPOINT", parts.path).decode()
            port = f":{OLLAMA_PORT}" * (parts.port is None and parts.scheme == "http")
            return f"{parts.scheme}://{parts.netloc.removesuffix(':')}{port}{path}"
    except ValueError:
        pass
    raise ToolError("OLLAMA_ENDPOINT has to look like http://HOST:PORT or http://HOST:PORT/PATH, without a password")


def read(arguments: Sequence[str]) -> Launch:
    """Merge the arguments of scripts/serve with mitmproxy's config files. Raises ToolError."""
    ours = _Parser(add_help=False, allow_abbrev=False)
    ours.add_argument("--demo", action="store_true")
    ours.add_argument("--workers", type=int, default=1)
    found, rest = ours.parse_known_args(arguments)
    if found.workers < 1 or (found.workers > 1 and not hasattr(socket, "SO_REUSEPORT")):
        raise ToolError("--workers takes a number from 1; more than 1 can't share a port on this system")
    options = Options()
    for option in option_table.OPTIONS:
        options.add_option(option.name, option.type, option.default, option.help)
    # Options of mitmproxy's own addons are missing here, and so stay unparsed: importing them takes a second.
    theirs = _Parser(add_help=False)
    cmdline.common_options(theirs, options)
    parsed, _ = theirs.parse_known_args(rest)
    _apply(options, parsed)
    try:
        settings.check_names(options.deferred)
        mode = None if found.demo else _mode(options.mode, strict=parsed.mode is not None)
    except settings.SettingsError as error:
        raise ToolError(str(error)) from None
    if found.demo and parsed.mode:
        raise ToolError("--demo is its own upstream: leave out --demo or --mode")
    return Launch(
        demo=found.demo,
        workers=found.workers,
        arguments=rest,
        options=options,
        mode=mode,
        mode_in_arguments=parsed.mode is not None,
        in_arguments=frozenset(spec.partition("=")[0] for spec in parsed.setoptions),
        config_files=[path for path in _config_paths(options) if path.is_file()],
    )


def _config_paths(options: Options) -> list[Path]:
    return [Path(options.confdir, name).expanduser() for name in CONFIG_FILES]


def _apply(options: Options, parsed: argparse.Namespace) -> None:
    """Set the options in the order of mitmproxy.tools.main.run. Raises ToolError."""
    try:
        options.set(*parsed.setoptions, defer=True)
        optmanager.load_paths(options, *_config_paths(options))
        options.update(**{name: value for name, value in vars(parsed).items() if name in options and value is not None})
    except AttributeError:  # The top level of the YAML is a list or a number.
        raise ToolError(f"{' or '.join(CONFIG_FILES)} in {options.confdir} has to hold lines NAME: VALUE") from None
    except (exceptions.OptionsError, TypeError) as error:
        # Only the first line, without values: what follows may quote a secret.
        fault = re.sub(r"(multiple values for \w+):.*", r"\1", str(error).splitlines()[0]).rstrip(":.")
        where = "" if "config.y" in fault else f", on the command line or in a config file in {options.confdir}"
        raise ToolError(f"mitmproxy would not start{where}: {fault}") from None


def _mode(modes: Sequence[str], *, strict: bool) -> ReverseMode | None:
    """The one reverse mode. Other modes are errors only where `strict`: config.yaml may be there for other programs."""
    if strict or (len(modes) == 1 and modes[0].startswith("reverse:")):
        settings.check_mode(modes)
        try:
            return ReverseMode.parse(modes[0])
        except ValueError as error:
            raise ToolError(f"the mode is not valid ({error}): write reverse:http://HOST:PORT") from None
    return None
