"""Options and environment -> one frozen Settings, or an error that says what to do. Reads a key file, changes nothing.

The option wins over the environment; of either, the key and the file that holds it can't both be set.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from .auth import forwarding, keys, keys_file
from .http import cors
from .http.head import Bounds
from .ollama_api.routes import RouteClass

MAX_KEY_FILE = 64 * 1024
"""Bytes; a larger file is not a key."""
MASKED = "(set, and hidden)"
"""What the option `ollama_api_key` shows once its key was taken. No key looks like this: it has white space."""
HOW_TO_SET_A_KEY = (
    'make one with `echo "sk-ollama-$(openssl rand -hex 16)"`, then set the environment variable OLLAMA_API_KEY to it, '
    "or OLLAMA_API_KEY_FILE to a file that holds it, or OLLAMA_KEYS_FILE to a file of named keys"
)


class SettingsError(ValueError):
    """A configuration that would leave the door open or can't work: one line with the remedy, never a secret."""


@dataclass(frozen=True, slots=True)
class Option:
    """One mitmproxy option of ours, as `Loader.add_option` takes it."""

    name: str
    type: Any
    default: Any
    help: str


OPTIONS = (
    Option("ollama_api_key", str | None, None,
           "The key that lets a client in. Prefer the environment variable OLLAMA_API_KEY: what is on a command line "
           "can be read in the list of processes. Hidden again once it was taken."),
    Option("ollama_api_key_file", str | None, None,
           "Path of a file that holds the key, such as a Docker secret. Environment: OLLAMA_API_KEY_FILE."),
    Option("ollama_keys_file", str | None, None,
           "Path of a file of named keys, in TOML; scripts/keys writes it. Read again when it changes, and on SIGHUP. "
           "Environment: OLLAMA_KEYS_FILE."),
    Option("ollama_access_log", str | None, None,
           "Where the access log goes as JSON lines: a path, or - for standard output. Unset: readable lines on "
           "standard output."),
    Option("ollama_audit_log", str | None, None,
           "Path of a file for all that is asked and answered, as JSON lines, readable by its owner alone. Unset: "
           "nobody's words are kept."),
    Option("ollama_audit_size", str, "100m",
           "Bytes of that file before a new one is begun; five old ones are kept, as PATH.1 to PATH.5."),
    Option("ollama_metrics_listen", str | None, None,
           "Where metrics, health and the status page are served, as HOST:PORT, such as 127.0.0.1:9464; 0.0.0.0:9464 "
           "shows them to everybody. Environment: OLLAMA_METRICS_LISTEN. Unset: nowhere."),
    Option("ollama_include_usage", bool, False,
           "Have Ollama tell the tokens of OpenAI streams whose client did not ask for them. Their requests are read "
           "whole, and the client does not see the difference. Off: their number is an estimate."),
    Option("ollama_forward_headers", Sequence[str], [],
           "Names of request headers to forward to Ollama besides the usual ones. Repeat for several. Credentials "
           "and hop-by-hop headers are refused."),
    Option("ollama_max_head", int, Bounds().head, "Largest request head in bytes; 431 above."),
    Option("ollama_max_header_count", int, Bounds().fields, "Most header fields in a request; 431 above."),
    Option("ollama_max_target", int, Bounds().target, "Longest request target in bytes; 414 above."),
    Option("ollama_max_body", Sequence[str], [],
           "Largest request body of a class of requests, as CLASS=SIZE with a suffix k, m or g, such as infer=64m; "
           "413 above. Repeat for several. Classes: " + ", ".join(RouteClass) + ", or all. Unset: no limit."),
    Option("ollama_max_inspected_body", str, "32m",
           "Largest request body that is read whole because the key in use may not use every model; 413 above."),
    Option("ollama_limits_storage", str | None, None,
           "Where the limits of keys are counted: a redis:// URL that several gates share. Unset: in memory."),
    Option("ollama_limits_unavailable", str, "closed",
           "What becomes of requests with limits while that storage does not answer: closed (503) or open."),
    Option("ollama_signature_window", int, 60,
           "Seconds that the time in a signature of the stock ollama CLI may differ from ours."),
    Option("ollama_max_wrong_keys", int | None, None,
           "Wrong keys from one address in a minute, after which only keys that were good there before are taken and "
           "others get 429; 0: no limit. Unset: 60 where there is a keys file, and no limit for the one key."),
    Option("ollama_cors_origins", Sequence[str], [],
           "Origins of web pages that may call this server from a browser, such as https://chat.example. Repeat for "
           "several. Unset: none."),
    Option("ollama_head_timeout", int, 10, "Seconds a client has to send a request head; 408 after that."),
    Option("ollama_idle_timeout", int, 120, "Seconds a connection may idle between two requests."),
    Option("ollama_handshake_timeout", int, 10, "Seconds a client has for the TLS handshake."),
    Option("ollama_connect_timeout", int, 10, "Seconds Ollama has to accept a connection; 504 after that."),
    Option("ollama_max_connections", int, 4096,
           "Most client connections at once; those that sent no request yet make room first, then 503."),
    Option("ollama_max_connections_per_client", int, 1024,
           "Most connections of one client address (of one /64 network in IPv6); 0: no limit of its own."),
    Option("ollama_max_flows", int, 1000,
           "Most requests that mitmweb and mitmproxy keep to look at; the oldest that have ended are dropped."),
    Option("ollama_grace_period", int, 30, "Seconds that running requests have to end when the gate is stopped."),
    Option("ollama_drain_delay", int, 0,
           "Seconds before that, in which a gate that is stopped still takes requests while /readyz is 503, so that a "
           "load balancer learns of it first."),
)  # fmt: skip

_NAMES = tuple(option.name for option in OPTIONS)
_RENAMED = {
    "ollama_limits_away": "ollama_limits_unavailable",
    "ollama_max_judged_body": "ollama_max_inspected_body",
}
_NUMBERS = tuple(option.name for option in OPTIONS if option.type is int)
_MAY_BE_ZERO = {"ollama_max_connections_per_client", "ollama_grace_period", "ollama_drain_delay"}
_SIZE = re.compile(r"([0-9]{1,12})([kmg]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}

# What a user must not set, and why. Each of these has been seen to open the door or to break a stream.
_FORBIDDEN = {
    "ignore_hosts": "it passes connections through unread, and with them the gate",
    "allow_hosts": "it passes connections through unread, and with them the gate",
    "tcp_hosts": "it passes connections through as raw TCP, and with them the gate",
    "udp_hosts": "it passes connections through as raw UDP, and with them the gate",
    "stream_large_bodies": "the gate streams every body already",
    "body_size_limit": "it cuts blob uploads and long answers; set ollama_max_body instead",
    "proxy_debug": "it writes credentials to the log",
    "emudhra": "it answers TLS with a private key that the whole world has",  # Since mitmproxy 12.3.
    "emudhra_old": "it answers TLS with a private key that the whole world has",
}


class Options(Protocol):
    """The part of mitmproxy's OptManager that is read here."""

    @property
    def deferred(self) -> Mapping[str, Any]: ...
    def __contains__(self, name: str) -> bool: ...
    def __getattr__(self, name: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the gate was told, checked. Times in seconds, sizes in bytes; `warnings` are for the log."""

    ring: keys.KeyRing
    access_log: str | None
    audit_log: str | None
    audit_size: int
    metrics_listen: tuple[str, int] | None
    include_usage: bool
    forward: frozenset[bytes]
    bounds: Bounds
    max_body: Mapping[RouteClass, int]
    head_timeout: int
    idle_timeout: int
    handshake_timeout: int
    connect_timeout: int
    max_connections: int
    max_connections_per_client: int
    grace_period: int
    drain_delay: int
    max_flows: int
    tls: bool
    keys_file: str | None
    max_inspected_body: int
    limits_storage: str | None
    open_without_limits: bool
    signature_window: int
    max_wrong_keys: int
    cors_origins: frozenset[str]
    warnings: tuple[str, ...] = field(default=())


def read(options: Options, environ: Mapping[str, str], taken: bytes | None = None) -> Settings:
    """Read and check everything. Raises SettingsError.

    `taken` is the digest of a key that was given as an option before, and has been hidden there since.
    """
    check_names(options.deferred)
    check_mode(options.mode)
    check_mitmproxy(options)
    check_numbers(options)
    ring, warnings = read_keys(options, environ, taken)
    try:
        forward = forwarding.extend(options.ollama_forward_headers)
    except forwarding.HeaderNameError as fault:
        raise SettingsError(f"ollama_forward_headers: {fault}") from fault
    return Settings(
        ring=ring,
        access_log=options.ollama_access_log or None,
        audit_log=options.ollama_audit_log or None,
        audit_size=read_size("ollama_audit_size", options.ollama_audit_size),
        metrics_listen=read_address(options.ollama_metrics_listen, environ),
        include_usage=options.ollama_include_usage,
        forward=forward,
        bounds=Bounds(options.ollama_max_head, options.ollama_max_header_count, options.ollama_max_target),
        max_body=read_sizes(options.ollama_max_body),
        head_timeout=options.ollama_head_timeout,
        idle_timeout=options.ollama_idle_timeout,
        handshake_timeout=options.ollama_handshake_timeout,
        connect_timeout=options.ollama_connect_timeout,
        max_connections=options.ollama_max_connections,
        max_connections_per_client=options.ollama_max_connections_per_client,
        grace_period=options.ollama_grace_period,
        drain_delay=options.ollama_drain_delay,
        max_flows=options.ollama_max_flows,
        tls=bool(options.certs),
        keys_file=keys_file_of(options, environ),
        max_inspected_body=read_size("ollama_max_inspected_body", options.ollama_max_inspected_body),
        limits_storage=options.ollama_limits_storage or None,
        open_without_limits=read_choice(
            "ollama_limits_unavailable", options.ollama_limits_unavailable, ("closed", "open")
        )
        == "open",
        signature_window=options.ollama_signature_window,
        max_wrong_keys=read_wrong_keys(options, environ),
        cors_origins=read_origins(options.ollama_cors_origins),
        warnings=(*warnings, *warn_of_audit(options.ollama_audit_log)),
    )


def check_names(deferred: Mapping[str, Any]) -> None:
    """mitmproxy keeps what it does not know for scripts that may come; of ours, none will. Raises SettingsError."""
    for name in deferred:
        lower = name.lower()
        if lower in _RENAMED:
            raise SettingsError(f"the option {lower} is called {_RENAMED[lower]} now: write that")
        if lower.startswith("ollama_") or get_close_matches(lower, _NAMES, n=1, cutoff=0.8):
            known = get_close_matches(lower, _NAMES, n=1, cutoff=0)[0]
            shown = re.split(r"[^A-Za-z0-9_-]", name, maxsplit=1)[0]  # What follows may be a value.
            raise SettingsError(
                f"there is no option {shown}; did you mean {known}=...? `mitmdump --options` lists them all"
            )


def check_mode(modes: Sequence[str]) -> None:
    """Only one reverse proxy to http or https has a gate in it. Raises SettingsError."""
    right = "run with --mode reverse:http://HOST:PORT of your Ollama server, and with no other mode"
    if len(modes) != 1:
        raise SettingsError(f"{len(modes)} modes are set, and each would be a door: {right}")
    kind, _, spec = modes[0].partition(":")
    if kind != "reverse":
        raise SettingsError(f"mode {kind} is not a reverse proxy: {right}")
    scheme, separator, _ = spec.partition("://")
    if not separator:
        raise SettingsError(
            f"the endpoint {spec} has no scheme, which mitmproxy takes for https: write reverse:http://{spec}"
        )
    if scheme not in ("http", "https"):
        raise SettingsError(f"mode reverse:{scheme}:// passes data through unread: {right}")


def check_mitmproxy(options: Options) -> None:
    """mitmproxy's own options that would open the door or break a stream. Raises SettingsError."""
    for name, why in _FORBIDDEN.items():
        if name in options and getattr(options, name):
            raise SettingsError(f"the option {name} can't be used here: {why}. Remove it")
    if options.connection_strategy == "eager":
        raise SettingsError(
            "connection_strategy=eager opens a connection to Ollama for every stranger: remove it, or set it to lazy"
        )
    if not options.validate_inbound_headers:
        raise SettingsError("validate_inbound_headers=false lets requests be smuggled past the gate: remove it")


def check_numbers(options: Options) -> None:
    """Bounds that are none. Raises SettingsError."""
    for name in _NUMBERS:
        least = 0 if name in _MAY_BE_ZERO else 1
        if getattr(options, name) < least:
            raise SettingsError(f"{name} is {getattr(options, name)}: it must be at least {least}")


def read_sizes(specs: Sequence[str]) -> dict[RouteClass, int]:
    """`["all=1m", "blob=2g"]` -> bytes by class; a class named by itself wins over all. Raises SettingsError."""
    named: dict[str, int] = {}
    for spec in specs:
        name, _, size = spec.replace(" ", "").partition("=")
        if not _SIZE.fullmatch(size) or (name != "all" and name not in set(RouteClass)):
            raise SettingsError(
                f"ollama_max_body: {spec!r} is not CLASS=SIZE, such as infer=64m; "
                "the classes are " + ", ".join([*RouteClass, "all"])
            )
        named[name] = read_size("ollama_max_body", size)
    everything = dict.fromkeys(RouteClass, named.pop("all")) if "all" in named else {}
    return everything | {RouteClass(name): size for name, size in named.items()}


def read_size(name: str, text: str) -> int:
    """`"32m"` -> bytes. Raises SettingsError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise SettingsError(f"{name}: {text!r} is not a size, such as 64m; the suffixes are k, m and g")
    return int(match[1]) * _UNITS[match[2].lower()]


def read_address(option: str | None, environ: Mapping[str, str]) -> tuple[str, int] | None:
    """`"127.0.0.1:9464"`, `"[::1]:9464"` -> (host, port); `""` -> None. Raises SettingsError."""
    text = option if option is not None else environ.get("OLLAMA_METRICS_LISTEN")
    if not text:
        return None
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"ollama_metrics_listen: {text!r} is not HOST:PORT, such as 127.0.0.1:9464")
    return host, int(port)


def warn_of_audit(path: str | None) -> tuple[str, ...]:
    """Nobody's words are kept without a word."""
    return (f"ollama_audit_log: all that is asked and answered is written to {path}",) if path else ()


def read_choice(name: str, text: str, choices: Sequence[str]) -> str:
    """One of the choices. Raises SettingsError."""
    if text not in choices:
        raise SettingsError(f"{name}: {text!r} is not one of {', '.join(choices)}")
    return text


def read_origins(origins: Sequence[str]) -> frozenset[str]:
    """Origins as browsers send them. Raises SettingsError."""
    for origin in origins:
        if fault := cors.check_origin(origin):
            raise SettingsError(f"ollama_cors_origins: {fault}")
    return frozenset(origins)


def read_wrong_keys(options: Options, environ: Mapping[str, str]) -> int:
    """Wrong keys in a minute; 0 is no limit. Raises SettingsError."""
    most = options.ollama_max_wrong_keys
    if most is not None and most < 0:
        raise SettingsError(f"ollama_max_wrong_keys is {most}: it must be at least 0")
    return int(most if most is not None else 60 if keys_file_of(options, environ) else 0)


def keys_file_of(options: Options, environ: Mapping[str, str]) -> str | None:
    """Where the named keys are, if anywhere."""
    return options.ollama_keys_file or environ.get("OLLAMA_KEYS_FILE") or None


def read_keys(
    options: Options, environ: Mapping[str, str], taken: bytes | None = None
) -> tuple[keys.KeyRing, tuple[str, ...]]:
    """(the one key and those in the file, warnings). One of the two will do. Raises SettingsError."""
    path = keys_file_of(options, environ)
    found: list[keys.Key] = []
    warnings: tuple[str, ...] = ()
    if path is None or _names_a_key(options, environ):
        digest, warnings = read_key(options, environ, taken)
        found.append(keys.Key(digest, keys.Principal("default")))
    try:
        if path is not None:
            named, more = keys_file.load(path)
            found += named
            warnings += more
        return keys.KeyRing(found), warnings
    except (keys_file.KeysFileError, keys.InvalidKeyError) as fault:
        raise SettingsError(str(fault)) from None


def _names_a_key(options: Options, environ: Mapping[str, str]) -> bool:
    given = (options.ollama_api_key, options.ollama_api_key_file)
    return any(value is not None for value in given) or bool({"OLLAMA_API_KEY", "OLLAMA_API_KEY_FILE"} & set(environ))


def read_key(options: Options, environ: Mapping[str, str], taken: bytes | None = None) -> tuple[bytes, tuple[str, ...]]:
    """(the digest of the one key, warnings). Raises SettingsError."""
    if options.ollama_api_key == MASKED and options.ollama_api_key_file is None:
        if taken is None:
            raise SettingsError(f"the option ollama_api_key holds no key: {HOW_TO_SET_A_KEY}")
        return taken, ()
    secret, where = _find_key(options, environ)
    try:
        digest = keys.digest(secret)
    except keys.InvalidKeyError as fault:
        raise SettingsError(f"{where}: {fault}; {HOW_TO_SET_A_KEY}") from None
    if len(secret) < keys.SHORT:
        return digest, (f"{where}: the key has fewer than {keys.SHORT} characters and may be guessed",)
    return digest, ()


def _find_key(options: Options, environ: Mapping[str, str]) -> tuple[str, str]:
    """(the secret, where it came from)."""
    sources = (
        (options.ollama_api_key, "ollama_api_key", options.ollama_api_key_file, "ollama_api_key_file"),
        (environ.get("OLLAMA_API_KEY"), "OLLAMA_API_KEY", environ.get("OLLAMA_API_KEY_FILE"), "OLLAMA_API_KEY_FILE"),
    )
    for secret, secret_name, path, path_name in sources:
        if secret is not None and path is not None:
            raise SettingsError(f"both {secret_name} and {path_name} are set, and only one can hold: unset one of them")
        if path is not None:
            return _read_key_file(path, path_name), path_name
        if secret is not None:
            return secret, secret_name
    raise SettingsError(f"no key is set, so nobody could be let in: {HOW_TO_SET_A_KEY}")


def _read_key_file(path: str, name: str) -> str:
    try:
        with Path(path).expanduser().open("rb") as file:
            raw = file.read(MAX_KEY_FILE + 1)
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a path"
        # It happens that the key itself is put here.
        shown = repr(path) if path.startswith(("~", ".")) or Path(path).is_absolute() else "the file"
        raise SettingsError(
            f"{name}: can't read {shown} ({why}); name a file this process may read that holds the key"
        ) from None
    if len(raw) > MAX_KEY_FILE:
        raise SettingsError(f"{name}: {path!r} is far too large to be a key; name a file that holds the key alone")
    # An editor or `echo` ends the file with a line end, which is no part of the key.
    text = raw.decode("utf-8", "replace")
    return text.removesuffix("\n").removesuffix("\r")
