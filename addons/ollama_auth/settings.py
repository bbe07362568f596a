"""Read options and environment into one frozen Settings, or raise a SettingsError that says what to do.

The option wins over the environment. The key and the file that holds it cannot both be set, in either place. A key
file and a keys file are read; nothing is changed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

from .auth import keys, keys_file, weak_keys
from .auth.client_ip import TrustedProxies
from .errors import why_unreadable
from .http.head import Bounds
from .ollama_api.routes import RouteClass
from .option_table import NAMES, OPTIONS, RENAMED, Options
from .option_table import SettingsError as SettingsError

MAX_KEY_FILE = 64 * 1024
"""Bytes; a larger file is not a key."""
MASK = "(set, and hidden)"
"""What the option `ollama_api_key` shows once its key was read, with a number behind it from the second key on.

It cannot be a key, because it has white space in it.
"""
NONE_HIDDEN: Mapping[str, bytes] = {}
WRONG_KEYS = 60
"""From one address in a minute, where there is a keys file and nothing else was said."""
HOW_TO_SET_A_KEY = (
    'make one with `echo "sk-ollama-$(openssl rand -hex 16)"`, then set the environment variable OLLAMA_API_KEY to it, '
    "or OLLAMA_API_KEY_FILE to a file that holds it, or OLLAMA_KEYS_FILE to a file of named keys"
)


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


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked configuration: times in seconds, sizes in bytes. `warnings` are for the log."""

    ring: keys.KeyRing
    access_log: str | None
    audit_log: str | None
    audit_size: int
    audit_keep: int | None
    metrics_listen: tuple[str, int] | None
    metrics_public: bool
    """/metrics needs no key."""
    usage_db: str | None
    usage_days: int
    base_path: bytes
    """What stands before the path of each request upstream."""
    forward_headers: frozenset[bytes]
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
    replaced_keys_timeout: int
    max_inspected_body: int
    max_held_bodies: int
    max_held_bodies_per_key: int
    body_timeout: int
    limits_storage: str | None = field(repr=False)
    limits_name: str
    timezone: ZoneInfo
    limits_unavailable: str
    """What becomes of requests with limits while the storage does not answer: `closed` or `open`."""
    signature_window: int
    max_wrong_keys: int
    cors_origins: frozenset[str]
    keepalive_idle: int
    keepalive_interval: int
    keepalive_probes: int
    proxies: TrustedProxies
    proxy_protocol: bool
    warnings: tuple[str, ...] = field(default=())

    @property
    def vanished_after(self) -> int:
        """Seconds without any sign of a peer, after which TCP_USER_TIMEOUT calls it gone.

        That is when the last question is due: timers of Linux are late by up to 2 s in a minute.
        """
        return self.keepalive_idle + self.keepalive_interval * (self.keepalive_probes - 1)


def read(
    options: Options,
    environ: Mapping[str, str],
    hidden: Mapping[str, bytes] = NONE_HIDDEN,
    before: Settings | None = None,
) -> Settings:
    """Read and check everything. Raises SettingsError.

    `before` is in force now. `hidden` has the digests of keys that were given as an option before, by the masks that
    hide them there since.
    """
    check_names(options.deferred)
    check_mode(options.mode)
    check_mitmproxy(options)
    values = {option.setting: option.read(options, environ) for option in OPTIONS if option.reader}
    if values["proxy_protocol"] and not values["trusted_proxies"]:
        raise SettingsError("ollama_proxy_protocol: name the proxies that send it in ollama_trusted_proxies")
    values["limits_storage"] = read_storage(options, environ, hidden)
    path = keys_file_of(options, environ)
    if values["max_wrong_keys"] is None:
        values["max_wrong_keys"] = WRONG_KEYS if path else 0
    values["usage_db"] = values["usage_db"] or shared_ledger(environ)
    ring, warnings = read_keys(options, environ, hidden, before)
    return _settings(values, ring=ring, keys_file=path, tls=bool(options.certs), warnings=warnings)


def shared_ledger(environ: Mapping[str, str]) -> str | None:
    """The file that several workers share where none was set, in their supervisor's folder; it goes with that."""
    folder = environ.get("PROMETHEUS_MULTIPROC_DIR")
    alone = environ.get("OLLAMA_WORKERS", "") in ("", "1")
    return None if alone or not folder else str(Path(folder, "ledger.sqlite"))


def _settings(values: dict[str, Any], **more: Any) -> Settings:
    bounds = Bounds(values.pop("max_head"), values.pop("max_header_count"), values.pop("max_target"))
    proxies = TrustedProxies(values.pop("trusted_proxies"), values.pop("client_ip_header"))
    return Settings(bounds=bounds, proxies=proxies, **values, **more)


_DEFAULTS = {option.setting: option.reader(option.name, option.default) for option in OPTIONS if option.reader}
UNCONFIGURED = _settings(_DEFAULTS, limits_storage=None, ring=keys.KeyRing(()), keys_file=None, tls=False)
"""The defaults, without a key."""


def check_names(deferred: Mapping[str, Any], names: Iterable[str] = ()) -> None:
    """Refuse misspelt options, which mitmproxy keeps in silence for scripts that may define them later.

    `names` are those that there are besides ours. Raises SettingsError.
    """
    for name in deferred:
        lower = name.lower()
        if lower in RENAMED:
            raise SettingsError(f"the option {lower} is called {RENAMED[lower]} now: write that")
        if lower.startswith("ollama_") or get_close_matches(lower, (*NAMES, *names), n=1, cutoff=0.8):
            known = get_close_matches(lower, (*NAMES, *names), n=1, cutoff=0)[0]
            shown = re.split(r"[^A-Za-z0-9_-]", name, maxsplit=1)[0]  # What follows may be a value.
            raise SettingsError(
                f"there is no option {shown}; did you mean {known}=...? `mitmdump --options` lists them all"
            )


def check_mode(modes: Sequence[str]) -> None:
    """Refuse every mode but one reverse proxy to http or https: in no other would a request be authorized.

    Raises SettingsError.
    """
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
    """Refuse options of mitmproxy that would bypass the gate or break a stream. Raises SettingsError."""
    for name, why in _FORBIDDEN.items():
        if name in options and getattr(options, name):
            raise SettingsError(f"the option {name} can't be used here: {why}. Remove it")
    port = options.listen_port if "listen_port" in options else None
    if port is not None and not 0 <= port < 65536:
        raise SettingsError(f"listen_port is {port}, which is no port, so another one is used: set it to 1 to 65535")
    if options.connection_strategy == "eager":
        raise SettingsError(
            "connection_strategy=eager opens a connection to Ollama for every stranger: remove it, or set it to lazy"
        )
    if not options.validate_inbound_headers:
        raise SettingsError("validate_inbound_headers=false lets requests be smuggled past the gate: remove it")


def keys_file_of(options: Options, environ: Mapping[str, str]) -> str | None:
    """Return the path of the keys file, or None."""
    return next(filter(is_given, (options.ollama_keys_file, environ.get("OLLAMA_KEYS_FILE"))), None)


def read_keys(
    options: Options,
    environ: Mapping[str, str],
    hidden: Mapping[str, bytes] = NONE_HIDDEN,
    before: Settings | None = None,
) -> tuple[keys.KeyRing, tuple[str, ...]]:
    """Return (the one key and those of the keys file, warnings); either is enough. Raises SettingsError."""
    path = keys_file_of(options, environ)
    found: list[keys.Key] = []
    warnings: tuple[str, ...] = ()
    if path is None or any(is_given(value) for one in _sources(options, environ) for value in one.values()):
        found.append(keys.Key(read_key(options, environ, hidden), keys.Principal("default")))
    try:
        if path is not None:
            named, warnings = keys_file.load(path, before.ring if before and before.keys_file == path else None)
            if found and not named:
                warnings = warnings[1:]  # The one that nobody is let in, which is not so with the key above.
            found += named
        return keys.KeyRing(found), warnings
    except (keys_file.KeysFileError, keys.InvalidKeyError) as fault:
        raise SettingsError(str(fault)) from None


def is_given(value: str | None) -> TypeGuard[str]:
    """Whether an option or a variable is set: an empty one is not."""
    return value is not None and bool(value.strip())


def _sources(
    options: Options, environ: Mapping[str, str], option: str = "ollama_api_key"
) -> tuple[dict[str, str | None], ...]:
    """A secret and the name of its file, in each place where they can be set; the first place wins."""
    names = (option, f"{option}_file")
    variables = tuple(map(str.upper, names))
    return {name: getattr(options, name) for name in names}, {name: environ.get(name) for name in variables}


def is_mask(value: str | None) -> bool:
    """Tell whether a value of the option `ollama_api_key` stands for a key that is hidden."""
    return value is not None and value.startswith(MASK)


def read_key(options: Options, environ: Mapping[str, str], hidden: Mapping[str, bytes] = NONE_HIDDEN) -> bytes:
    """Return the SHA-256 digest of the one key. Raises SettingsError."""
    if is_mask(options.ollama_api_key) and not is_given(options.ollama_api_key_file):
        if options.ollama_api_key not in hidden:
            raise SettingsError(f"the option ollama_api_key holds no key: {HOW_TO_SET_A_KEY}")
        return hidden[options.ollama_api_key]
    found = find_secret(options, environ)
    if found is None:
        names = (name for one in _sources(options, environ) for name, value in one.items() if value is not None)
        empty = next(names, None)
        what = f"{empty}: the key is empty" if empty else "no key is set, so nobody could be let in"
        raise SettingsError(f"{what}: {HOW_TO_SET_A_KEY}")
    secret, where = found
    try:
        weak_keys.check(secret)
        digest = keys.digest(secret)
        weak_keys.check_strength(secret)
    except keys.InvalidKeyError as fault:
        raise SettingsError(f"{where}: {fault}; {HOW_TO_SET_A_KEY}") from None
    return digest


def read_storage(options: Options, environ: Mapping[str, str], hidden: Mapping[str, bytes]) -> str | None:
    """Return the URL of the storage of limits, which may hold a password. Raises SettingsError."""
    found = find_secret(options, environ, "ollama_limits_storage")
    if found is None:
        return None
    url = found[0].strip()
    return hidden[url].decode() if url in hidden else url


def masked_url(url: str) -> str | None:
    """Return a URL without its password; None where there is none in it."""
    parts = urlsplit(url)
    secrets = [value for name, value in parse_qsl(parts.query) if "password" in name]
    if "@" not in parts.netloc and not secrets:
        return None
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://***@{place}{parts.path}"


def find_secret(options: Options, environ: Mapping[str, str], option: str = "ollama_api_key") -> tuple[str, str] | None:
    """Return (the secret, the name of its option or variable), or None. Raises SettingsError."""
    for source in _sources(options, environ, option):
        given = {name: value for name, value in source.items() if is_given(value)}
        if len(given) > 1:
            both = " and ".join(given)
            raise SettingsError(f"both {both} are set, and only one can hold: unset one of them")
        for name, value in given.items():
            return (_read_key_file(value, name) if name.lower().endswith("_file") else value), name
    return None


def _read_key_file(path: str, name: str) -> str:
    what = "URL" if "storage" in name.lower() else "key"
    try:
        with Path(path).expanduser().open("rb") as file:
            raw = file.read(MAX_KEY_FILE + 1)
    except (OSError, ValueError, RuntimeError) as error:
        # It happens that the key itself is put here.
        shown = repr(path) if path.startswith(("~", ".")) or Path(path).is_absolute() else "the file"
        remedy = f"name a file this process may read that holds the {what}"
        raise SettingsError(f"{name}: can't read {shown} ({why_unreadable(error)}); {remedy}") from None
    if len(raw) > MAX_KEY_FILE:
        raise SettingsError(f"{name}: {path!r} is far too large to be a {what}; name a file that holds it alone")
    # An editor or `echo` ends the file with a line end, which is no part of the key.
    text = raw.decode("utf-8", "replace")
    return text.removesuffix("\n").removesuffix("\r")
