"""The options of the gate: name, type, default, help text, and how a value becomes a setting.

mitmproxy shows the help texts with `mitmdump --options`. Readers take (option name, value) and raise SettingsError.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .auth import client_ip, forwarding
from .errors import OllamaAuthError, command
from .http import cors
from .http.head import TOKEN, Bounds
from .ollama_api.routes import RouteClass
from .units import parse_size

_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class SettingsError(OllamaAuthError, ValueError):
    """A configuration that would leave the door open or cannot work: one line with the remedy, never a secret."""


class Options(Protocol):
    """The part of mitmproxy's OptManager that is read here."""

    @property
    def deferred(self) -> Mapping[str, Any]: ...
    def __contains__(self, name: str) -> bool: ...
    def __getattr__(self, name: str) -> Any: ...


BASE_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
type Reader = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Option:
    """One mitmproxy option; `name`, `type`, `default` and `help` are what `Loader.add_option` takes."""

    name: str
    type: Any
    default: Any
    help: str
    reader: Reader | None = None
    """Makes the setting of it. None: settings.py reads it together with others."""
    environment: str | None = None
    """The variable that is read where the option is not set."""

    @property
    def setting(self) -> str:
        """Its name in Settings."""
        return self.name.removeprefix("ollama_")

    def read(self, options: Options, environ: Mapping[str, str]) -> Any:
        """Return the setting, of the option or else of the environment. Raises SettingsError."""
        value = getattr(options, self.name)
        if value in (None, []) and self.environment:
            value = environ.get(self.environment, value)
        return self.reader(self.name, value) if self.reader else value


def as_it_is(_: str, value: bool) -> bool:
    """Return a value that mitmproxy has checked."""
    return value


def optional(_: str, value: str | None) -> str | None:
    """Return a text; an empty one is unset."""
    return value or None


def number(least: int, most: float = math.inf) -> Reader:
    """Make a reader that takes a number of that range, or None where it is unset."""

    def read(name: str, value: int | None) -> int | None:
        if value is not None and not least <= value <= most:
            bound = f"least {least}" if value < least else f"most {most}"
            raise SettingsError(f"{name} is {value}: it must be at {bound}")
        return value

    return read


positive, not_negative = number(1), number(0)


def size(name: str, text: str) -> int:
    """`"32m"` -> bytes."""
    found = parse_size(text.strip())
    if found is None:
        raise SettingsError(f"{name}: {text!r} is not a size, such as 64m; the suffixes are k, m and g")
    return found


def sizes(name: str, specs: Sequence[str]) -> dict[RouteClass, int]:
    """`["all=1m", "blob=2g"]` -> bytes by class; a class that is named by itself wins over `all`."""
    named: dict[str, int] = {}
    for spec in specs:
        route_class, _, text = spec.replace(" ", "").partition("=")
        if parse_size(text) is None or (route_class != "all" and route_class not in set(RouteClass)):
            raise SettingsError(
                f"{name}: {spec!r} is not CLASS=SIZE, such as infer=64m; "
                "the classes are " + ", ".join([*RouteClass, "all"])
            )
        named[route_class] = size(name, text)
    everything = dict.fromkeys(RouteClass, named.pop("all")) if "all" in named else {}
    return everything | {RouteClass(route_class): limit for route_class, limit in named.items()}


def address(name: str, text: str | None) -> tuple[str, int] | None:
    """`"127.0.0.1:9464"`, `"[::1]:9464"` -> (host, port); an empty text is unset."""
    if not text:
        return None
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"{name}: {text!r} is not HOST:PORT, such as 127.0.0.1:9464")
    return host, int(port)


def one_of(*choices: str) -> Reader:
    """Make a reader that takes one of the choices."""

    def choice(name: str, text: str) -> str:
        if text not in choices:
            raise SettingsError(f"{name}: {text!r} is not one of {', '.join(choices)}")
        return text

    return choice


def base_path(name: str, text: str) -> bytes:
    """`"/olla/ollama"` -> the same in bytes; what follows is the path of a request."""
    path = text.removesuffix("/")
    if path and (not BASE_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")) or path in ("/api", "/v1")):
        raise SettingsError(f"{name}: {text!r} is not what stands before /api and /v1, such as /olla/ollama")
    return path.encode()


def plain_name(name: str, text: str) -> str:
    """Return a name that needs no quotes anywhere."""
    if not _PLAIN_NAME.fullmatch(text):
        raise SettingsError(f"{name}: {text!r} is not a name of up to 64 letters, digits, dots, dashes and underscores")
    return text


def zone(name: str, text: str) -> ZoneInfo:
    """Return a time zone of the system's data base, or of the package tzdata."""
    try:
        return ZoneInfo(text)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise SettingsError(f"{name}: no time zone {text!r} is known here, such as UTC or Europe/Berlin") from None


def origins(name: str, values: Sequence[str]) -> frozenset[str]:
    """Return origins as browsers send them."""
    for origin in values:
        if fault := cors.check_origin(origin):
            raise SettingsError(f"{name}: {origin!r} {fault}")
    return frozenset(values)


def header_names(name: str, names: Sequence[str]) -> frozenset[bytes]:
    """Return the allow-list of request headers, with these names added, in lower case."""
    try:
        return forwarding.extend(names)
    except forwarding.HeaderNameError as error:
        raise SettingsError(f"{name}: {error}") from error


def networks(name: str, value: str | Sequence[str]) -> tuple[client_ip.Network, ...]:
    """Return addresses and networks, of the option or of the variable, where commas separate them."""
    try:
        return client_ip.parse_networks([value] if isinstance(value, str) else value)
    except client_ip.ProxyError as error:
        raise SettingsError(f"{name}: {error}") from error


def header_name(name: str, text: str) -> str:
    """Return the name of a header field."""
    if not TOKEN.fullmatch(text.encode("utf-8", "replace")):
        raise SettingsError(f"{name}: {text!r} is not the name of a header, such as {' or '.join(client_ip.HEADERS)}")
    return text


MOST_SECONDS = 32767
"""What Linux takes for TCP_KEEPIDLE and TCP_KEEPINTVL."""
OPTIONS: tuple[Option, ...] = (
    Option("ollama_api_key", str | None, None,
           "The key that lets a client in. Prefer the environment variable OLLAMA_API_KEY: what is on a command line "
           "can be read in the list of processes. Hidden again once it was taken."),
    Option("ollama_api_key_file", str | None, None,
           "Path of a file that holds the key, such as a Docker secret. Environment: OLLAMA_API_KEY_FILE."),
    Option("ollama_keys_file", str | None, None,
           f"Path of a file of named keys, in TOML; {command('keys')} writes it. Read again when it changes, and "
           "on SIGHUP. Environment: OLLAMA_KEYS_FILE."),
    Option("ollama_replaced_keys_timeout", int, 300,
           "Seconds that the keys of a keys file are still accepted after the file, mounted by itself, was replaced "
           "outside, so that what was revoked can't be seen; 0: no longer.", not_negative),
    Option("ollama_access_log", str | None, None,
           "Where the access log goes as JSON lines: a path, or - for standard output. Unset: readable lines on "
           "standard output.", optional),
    Option("ollama_audit_log", str | None, None,
           "Path of a file that records prompts and responses as JSON lines, readable by its owner alone. Unset: they "
           "are not recorded.", optional),
    Option("ollama_audit_size", str, "100m",
           "Bytes of that file before a new one is begun; the old ones are PATH.1 (the newest), PATH.2, and so on.",
           size),
    Option("ollama_audit_keep", int | None, None,
           "Most old files of that log to keep; older ones are deleted. Unset: none is ever deleted.", positive),
    Option("ollama_metrics_listen", str | None, None,
           "Where metrics, health and the console are served, as HOST:PORT, such as 127.0.0.1:9464; 0.0.0.0:9464 "
           "lets other machines ask. Environment: OLLAMA_METRICS_LISTEN. Unset: nowhere.",
           address, "OLLAMA_METRICS_LISTEN"),
    Option("ollama_metrics_public", bool, True,
           "Whether /metrics there needs no key. Off: it needs one with the scope admin.", as_it_is),
    Option("ollama_usage_db", str | None, None,
           "Path of a SQLite file that remembers who used what, so that a restart forgets nothing. Environment: "
           "OLLAMA_USAGE_DB. Unset: in memory.", optional, "OLLAMA_USAGE_DB"),
    Option("ollama_usage_days", int, 30, "Days for which each request is kept there; sums by hour are kept for ever.",
           positive),
    Option("ollama_base_path", str, "",
           "The beginning of Ollama's paths, where an endpoint has one, such as /olla/ollama. Clients do not send it.",
           base_path),
    Option("ollama_forward_headers", Sequence[str], [],
           "Names of request headers to forward to Ollama besides the usual ones. Repeat for several. Fields that "
           "carry credentials, such as Cookie, and hop-by-hop fields are refused.", header_names),
    Option("ollama_max_head", int, Bounds().head, "Largest request head in bytes; 431 above.", positive),
    Option("ollama_max_header_count", int, Bounds().fields, "Most header fields in a request; 431 above.", positive),
    Option("ollama_max_target", int, Bounds().target, "Longest request target in bytes; 414 above.", positive),
    Option("ollama_max_body", Sequence[str], [],
           "Largest request body of a class of requests, as CLASS=SIZE with a suffix k, m or g, such as infer=64m; "
           "413 above. Repeat for several. Classes: " + ", ".join(RouteClass) + ", or all. Unset: no limit.", sizes),
    Option("ollama_max_inspected_body", str, "32m",
           "Largest request body that is read whole because the key in use may not use every model; 413 above.", size),
    Option("ollama_max_held_bodies", str, "256m",
           "Most bytes of such bodies in memory at once, of all keys; 503 above.", size),
    Option("ollama_max_held_bodies_per_key", str, "96m",
           "Most bytes of such bodies in memory at once, of one key; 429 above.", size),
    Option("ollama_body_timeout", int, 30,
           "Seconds that such a body may pause between two of its bytes; 408 after that.", positive),
    Option("ollama_limits_storage", str | None, None,
           "Where several gates count the limits of keys together: a redis:// URL. A password in it is hidden again "
           "once it was taken, but not in the list of processes. Environment: OLLAMA_LIMITS_STORAGE. Unset: each gate "
           "counts for itself."),
    Option("ollama_limits_storage_file", str | None, None,
           "Path of a file that holds that URL. Environment: OLLAMA_LIMITS_STORAGE_FILE."),
    Option("ollama_limits_name", str, "main",
           "Name of this deployment in that storage: what it keeps there begins with ollama_auth:NAME:.", plain_name),
    Option("ollama_timezone", str, "UTC",
           "Time zone of the days and months by which the tokens of keys are limited, such as Europe/Berlin.", zone),
    Option("ollama_limits_unavailable", str, "closed",
           "What becomes of requests with limits while that storage does not answer: closed (503) or open.",
           one_of("closed", "open")),
    Option("ollama_signature_window", int, 60,
           "Seconds that the time in a signature of the stock ollama CLI may differ from ours.", positive),
    Option("ollama_max_wrong_keys", int | None, None,
           "Different wrong keys from one address in a minute, with which wrong keys from there get 429, and right "
           "keys are accepted. 0: no limit. Unset: 60 where there is a keys file, and no limit for the one key.",
           not_negative),
    Option("ollama_cors_origins", Sequence[str], [],
           "Origins of web pages that may call this server from a browser, such as https://chat.example. Repeat for "
           "several. Unset: none.", origins),
    Option("ollama_head_timeout", int, 10, "Seconds a client has to send a request head; 408 after that.", positive),
    Option("ollama_idle_timeout", int, 120, "Seconds a connection may idle between two requests.", positive),
    Option("ollama_handshake_timeout", int, 10, "Seconds a client has for the TLS handshake.", positive),
    Option("ollama_connect_timeout", int, 10, "Seconds Ollama has to accept a connection; 504 after that.", positive),
    Option("ollama_max_connections", int, 4096,
           "Most client connections at once; those that sent no request yet make room first, then 503.", positive),
    Option("ollama_max_connections_per_client", int, 1024,
           "Most connections of one client address (of one /64 network in IPv6); 0: no limit of its own.",
           not_negative),
    Option("ollama_keepalive_idle", int, 30,
           "Seconds of silence of a client or of Ollama, after which TCP asks whether it is still there. A peer that "
           "answers may be silent for as long as it likes. 0: never.", number(0, MOST_SECONDS)),
    Option("ollama_keepalive_interval", int, 10, "Seconds between two such questions.", number(1, MOST_SECONDS)),
    Option("ollama_keepalive_probes", int, 3,
           "Such questions without an answer that end the connection.", number(1, 127)),
    Option("ollama_trusted_proxies", Sequence[str], [],
           "Addresses and networks of the proxies in front that are believed when they name the client, such as "
           "10.0.0.2 or 10.0.0.0/24. Repeat for several. Environment, with commas: OLLAMA_TRUSTED_PROXIES. "
           "Unset: none.", networks, "OLLAMA_TRUSTED_PROXIES"),
    Option("ollama_client_ip_header", str, client_ip.FORWARDED_FOR,
           "The header in which they name it: X-Forwarded-For, Forwarded, X-Real-IP or CF-Connecting-IP.", header_name),
    Option("ollama_proxy_protocol", bool, False,
           "They send the PROXY protocol (version 1 or 2): each of their connections has to begin with it.",
           lambda _, on: on),
    Option("ollama_max_flows", int, 1000,
           "Most requests that mitmweb and mitmproxy keep to look at; the oldest that have ended are dropped.",
           positive),
    Option("ollama_grace_period", int, 30, "Seconds that running requests have to end when the gate is stopped.",
           not_negative),
    Option("ollama_drain_delay", int, 0,
           "Seconds before that, in which a gate that is stopped still takes requests while /readyz is 503, so that a "
           "load balancer learns of it first.", not_negative),
)  # fmt: skip

NAMES = tuple(option.name for option in OPTIONS)
RENAMED = {
    "ollama_limits_away": "ollama_limits_unavailable",
    "ollama_max_judged_body": "ollama_max_inspected_body",
}
"""Old names, and what they are called now."""
