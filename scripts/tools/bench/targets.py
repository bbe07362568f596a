"""The proxies that scripts/bench measures, each configured as its documentation recommends."""

import hashlib
import io
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from mitmproxy.certs import CertStore

from .. import TOOLS, launch
from ..serve import KEY, KEYS_FILE, METRICS_LISTEN, gate_command
from .load import Address

HOST = "127.0.0.1"
ROOT = TOOLS.parents[1]
BIN = Path(sys.executable).parent
START_TIMEOUT = 30.0
"""Seconds."""
MANY = 10_000
MANY_CONNECTIONS = ("--set", "ollama_max_connections=20000", "--set", "ollama_max_connections_per_client=0")
STREAM_ALL = """
def requestheaders(flow): flow.request.stream = True
def responseheaders(flow): flow.response.stream = True
"""
BLIND = """
from ollama_auth.ollama_api.usage import UsageReader
UsageReader.feed = lambda self, data: 0
"""
FORGETFUL = """
from ollama_auth import lifecycle
from ollama_auth.telemetry.ledger import Ledger
lifecycle.entry_of = lambda exchange: None
Ledger.add = lambda self, entry, row=True: None
"""
CADDYFILE = """
{{
    admin off
    auto_https off
    log {{
        output discard
    }}
}}
:{port} {{
    bind {host}
    @key header Authorization "Bearer {key}"
    handle @key {{
        reverse_proxy {upstream} {{
            header_up Host {{upstream_hostport}}
            header_up -Authorization
            flush_interval -1
        }}
    }}
    handle {{
        respond 401
    }}
}}
"""
NGINX = """
daemon off;
worker_processes auto;
pid {folder}/nginx.pid;
error_log /dev/null;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    map $http_authorization $good {{ default 0; "Bearer {key}" 1; }}
    keepalive_requests 1000000;
    upstream ollama {{ server {upstream}; keepalive 256; keepalive_requests 1000000; }}
    server {{
        listen {host}:{port} backlog=1024;
        location / {{
            if ($good = 0) {{ return 401; }}
            proxy_pass http://ollama;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "";
            proxy_buffering off;
            proxy_request_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Target:
    """A program to measure: a proxy in front of the upstream, or the upstream itself."""

    name: str
    at: Address
    command: list[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    page: str = ""
    """The address of its page, if it has one."""

    @contextmanager
    def started(self) -> Iterator[int]:
        """Run it. Yields its process id when it listens; raises SystemExit if it does not start."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
        process = subprocess.Popen(
            self.command, env=environment | dict(self.variables), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            until = time.monotonic() + START_TIMEOUT
            while not listens(self.at):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{self.name} did not start: {shlex.join(self.command)}")
                time.sleep(0.005)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(START_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


type Make = Callable[[Path], Target]
"""Makes a target on a free port; its files are written to the folder."""


def listens(at: Address) -> bool:
    try:
        socket.create_connection((at.host, at.port), 1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def address() -> Address:
    return Address(HOST, free_port(), secrets.token_hex(16))


def program(name: str) -> str | None:
    """The path of a program in this Python's environment, else on the machine."""
    return shutil.which(name, path=str(BIN)) or shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def upstream() -> Target:
    at = Address(HOST, free_port(), key="")
    return Target("direct", at, [sys.executable, str(TOOLS / "bench" / "upstream.py"), str(at.port)])


def caddy(binary: str, upstream: Address, folder: Path, certificate: Path | None = None) -> Target:
    at = address()
    config = folder / f"Caddyfile-{at.port}"
    text = CADDYFILE.format(port=at.port, host=at.host, key=at.key, upstream=f"{HOST}:{upstream.port}")
    if certificate:
        text = text.replace(f":{at.port} {{", f"https://localhost:{at.port} {{\n    tls {certificate} {certificate}")
    config.write_text(text)
    homes = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    return Target("Caddy", at, [binary, "run", "--adapter", "caddyfile", "--config", str(config)], homes)


def nginx(binary: str, upstream: Address, folder: Path) -> Target:
    at = address()
    config = folder / f"nginx-{at.port}.conf"
    home = folder / f"nginx-{at.port}"
    home.mkdir()
    config.write_text(
        NGINX.format(port=at.port, host=at.host, key=at.key, upstream=f"{HOST}:{upstream.port}", folder=home)
    )
    return Target("nginx", at, [binary, "-p", str(home), "-e", "/dev/null", "-c", str(config)])


def arguments(at: Address, folder: Path) -> list[str]:
    return ["--listen-host", at.host, "--listen-port", str(at.port), "--set", f"confdir={folder}"]


def bare(upstream: Address, folder: Path) -> Target:
    at = Address(HOST, free_port(), key="")
    (script := folder / "stream_all.py").write_text(STREAM_ALL)
    return Target("bare", at, [*mitmdump(upstream, script), *arguments(at, folder)])


def mitmdump(upstream: Address, script: Path) -> list[str]:
    command = [sys.executable, str(program("mitmdump"))]
    return [*command, "--mode", f"reverse:{upstream.url}", "-s", str(script)]


def ours(name: str, more: list[str], upstream: Address, folder: Path) -> Target:
    """The gate as scripts/serve starts it, with metrics and console."""
    at, listen = address(), f"{HOST}:{free_port()}"
    options = launch.read([*arguments(at, folder), *MANY_CONNECTIONS, *more])
    command = gate_command(upstream.url, options)
    return Target(name, at, command, {KEY: at.key, METRICS_LISTEN: listen}, page=f"http://{listen}/")


def patched(name: str, source: str, upstream: Address, folder: Path) -> Target:
    """The gate without a part of it, to see what that costs."""
    (script := folder / f"{name.replace(' ', '_')}.py").write_text(source)
    return ours(name, ["-s", str(script)], upstream, folder)


def with_ledger(upstream: Address, folder: Path) -> Target:
    """The gate with its ledger in a file, as scripts/serve has it."""
    return ours("ledger", ["--set", f"ollama_usage_db={folder}/usage.db"], upstream, folder)


def workers(count: int, upstream: Address, folder: Path) -> Target:
    at = address()
    command = [sys.executable, str(TOOLS), "serve", "--workers", str(count), *arguments(at, folder), *MANY_CONNECTIONS]
    return Target(f"ours x{count}", at, command, gate_variables(at, upstream))


def gate_variables(at: Address, upstream: Address) -> dict[str, str]:
    """The environment of a gate that reads all of it there. It has its metrics and console on a port of their own."""
    return {KEY: at.key, "OLLAMA_ENDPOINT": upstream.url, METRICS_LISTEN: f"{HOST}:{free_port()}"}


def other(spec: str, upstream: Address, folder: Path) -> Target:
    """A target from NAME=COMMAND; the command may hold {port}, {upstream}, {key} and {folder}.

    If it is a gate, its console is at the address of the environment.
    """
    name, _, command = spec.partition("=")
    at = address()
    values = {"port": at.port, "upstream": upstream.url, "key": at.key, "folder": folder}
    variables = gate_variables(at, upstream)
    words = [word.format(**values) for word in shlex.split(command)]
    return Target(name, at, words, variables, page=f"http://{variables[METRICS_LISTEN]}/")


def named_keys(name: str, entry: str, upstream: Address, folder: Path) -> Target:
    """The gate with a file of MANY named keys; the one in use is the last."""
    at = address()
    keys = [(f"key-{number}", secrets.token_hex(16), "") for number in range(MANY - 1)]
    text = "".join(
        f'[[keys]]\nname = "{called}"\nsha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n{more}'
        for called, secret, more in [*keys, (name, at.key, entry)]
    )
    (file := folder / f"keys-{name}.toml").write_text(text)
    file.chmod(0o600)
    more = [*arguments(at, folder), "--set", "ollama_max_wrong_keys=0"]
    command = gate_command(upstream.url, launch.read(more))
    return Target(name, at, command, {KEY: secrets.token_hex(16), KEYS_FILE: str(file)})


SCOPES = 'scopes = ["infer", "embed", "list", "cloud"]\n'
MODELS = SCOPES + 'models = ["demo", "qwen*"]\n'


def plain(upstream: Address, folder: Path) -> Target:
    """The gate as README's line for mitmdump starts it."""
    at = address()
    command = [*mitmdump(upstream, ROOT / "addons" / "auth.py"), *arguments(at, folder), *MANY_CONNECTIONS]
    return Target("ours plain", at, command, {KEY: at.key})


def revision(name: str, more: list[str], upstream: Address, folder: Path) -> Target:
    """The gate of another commit, with this environment. Raises CalledProcessError."""
    checkout = folder / f"revision-{name}"
    if not checkout.exists():
        checkout.mkdir()
        archive = subprocess.run([str(program("git")), "archive", name], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(checkout, filter="data")
    at = address()
    command = [sys.executable, str(checkout / "scripts" / "tools"), "serve", *arguments(at, folder)]
    return Target(f"ours {name}", at, [*command, *MANY_CONNECTIONS, *more], gate_variables(at, upstream))


def with_tls(upstream: Address, options: Namespace, folder: Path) -> dict[str, Make]:
    """The targets that speak HTTP/2, which takes TLS."""
    entry = CertStore.from_store(folder, "mitmproxy", 2048).get_cert("localhost", [x509.DNSName("localhost")])
    (certificate := folder / "localhost.pem").write_bytes(entry.cert.to_pem() + private_pem(entry.privatekey))
    more = ["--certs", str(certificate)]
    makes: dict[str, Make] = {"ours": partial(ours, "ours", more, upstream)}
    if options.compare:
        makes["compare"] = partial(revision, options.compare, more, upstream)
    if (binary := program("caddy")) and "caddy" not in options.without:
        makes["caddy"] = partial(caddy, binary, upstream, certificate=certificate)
    return makes


def private_pem(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def http2_requests(at: Address, count: int) -> float:
    """Requests a second of h2load, on four connections with 32 streams each. Raises OSError where one fails."""
    load = [program("h2load") or "h2load", f"-n{count}", "-c4", "-m32", "-H", f"authorization: Bearer {at.key}"]
    url = f"https://localhost:{at.port}/api/version"
    done = subprocess.run([*load, url], capture_output=True, text=True, check=False, timeout=60)
    rate = re.search(r"([0-9.]+) req/s", done.stdout)
    if not rate or f"{count} 2xx" not in done.stdout:
        raise OSError(f"h2load did not get {count} good answers: {done.stdout or done.stderr}")
    return float(rate[1])


def all_of(upstream: Address, options: Namespace) -> dict[str, Make]:
    """The targets that are asked for and can be measured here, by name. Prints the names of those that can't."""
    makes: dict[str, Make] = {}
    for name, make in {"caddy": caddy, "nginx": nginx}.items():
        if binary := program(name):
            makes[name] = partial(make, binary, upstream)
        else:
            print(f"no {name} here: without its column", file=sys.stderr)
    makes["bare"] = partial(bare, upstream)
    makes["ours"] = partial(ours, "ours", [], upstream)
    if options.plain:
        makes["plain"] = partial(plain, upstream)
    if options.compare:
        makes["compare"] = partial(revision, options.compare, [], upstream)
    if options.workers > 1:
        makes["workers"] = partial(workers, options.workers, upstream)
    if options.usage:
        makes["blind"] = partial(patched, "blind", BLIND, upstream)
        makes["no ledger"] = partial(patched, "no ledger", FORGETFUL, upstream)
        makes["ledger"] = partial(with_ledger, upstream)
    for spec in options.also:
        makes[spec] = partial(other, spec, upstream)
    if options.keys:
        makes |= {
            name: partial(named_keys, name, entry, upstream)
            for name, entry in {"scopes": SCOPES, "models": MODELS}.items()
        }
    return makes
