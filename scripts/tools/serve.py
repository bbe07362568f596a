"""Usage: scripts/serve [--demo] [--workers N] [mitmdump arguments]

Starts the gateway on port 8081, in front of the Ollama server at OLLAMA_ENDPOINT (http://127.0.0.1:11434 unless set).

  --demo   start a fake Ollama server with a model, `demo`, behind it
  --workers N
           run N processes that share the port, to use more than one processor core
  --help   show this

All other arguments go to mitmdump, such as --listen-port 9000, --listen-host 127.0.0.1, --certs cert.pem. Options in
mitmproxy's ~/.mitmproxy/config.yaml apply, too.

Variables come from the environment, else from .env.local in the working directory (lines OLLAMA_…=value):
OLLAMA_API_KEY, OLLAMA_API_KEY_FILE, OLLAMA_KEYS_FILE, OLLAMA_ENDPOINT, and OLLAMA_METRICS_LISTEN (the address of the
status page and of the metrics: 127.0.0.1:9464 unless set; set it to nothing to turn them off), and OLLAMA_USAGE_DB (the
ledger: usage.db in the working directory unless set; set it to nothing to keep it in memory). If no key is set
anywhere, scripts/serve makes one, stores it in .env.local and shows it once.
"""

import errno
import http.client
import os
import re
import secrets
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ollama_auth.auth import keys_editor
from ollama_auth.auth.key_fields import FieldError
from ollama_auth.auth.keys import new_key
from ollama_auth.settings import is_given

from . import ADDON, TOOLS, launch
from .launch import Launch
from .terminal import ToolError, say

ENV_FILE = Path(".env.local")
ENV_LINE = re.compile(r"""\s*(?:export\s+)?(\w+)\s*=\s*(?:(['"])(.*)\2|(.*?))(?:\s+#.*)?\s*""")
KEY, KEY_FILE, KEYS_FILE = "OLLAMA_API_KEY", "OLLAMA_API_KEY_FILE", "OLLAMA_KEYS_FILE"
METRICS_LISTEN, USAGE_DB = "OLLAMA_METRICS_LISTEN", "OLLAMA_USAGE_DB"
SELF_CHECK, GUIDANCE = "OLLAMA_AUTH_SELF_CHECK", "OLLAMA_AUTH_GUIDANCE"  # See mitmdump.py.
INTERRUPTED = 130
"""The exit status of a program that was interrupted before it had begun."""
STATUS_ADDRESS = ("127.0.0.1", 9464)


def read_env(text: str) -> dict[str, str]:
    """The OLLAMA_… variables of an env file, which can't set others such as PATH. Raises ToolError."""
    found = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not (match := ENV_LINE.fullmatch(line)):
            raise ToolError(f"{ENV_FILE}, line {number} is not of the form NAME=value")
        name, _, quoted, bare = match.groups()
        if name.startswith("OLLAMA_"):
            found[name] = bare if quoted is None else quoted
    return found


def read_env_file() -> dict[str, str]:
    """The variables in ENV_FILE, if it exists. Raises ToolError."""
    return read_env(ENV_FILE.read_text("utf-8", "replace")) if ENV_FILE.exists() else {}


def merge(real: Mapping[str, str], file: Mapping[str, str]) -> dict[str, str]:
    """Both, where the real environment wins: if it sets the key in either form, both forms in the file are ignored.

    An empty variable in it does not count where the file has a value, except that it turns the status page off.
    """
    if is_given(real.get(KEY)) or is_given(real.get(KEY_FILE)):
        file = {name: value for name, value in file.items() if name not in (KEY, KEY_FILE)}
    wins = {name: value for name, value in real.items() if value or name == METRICS_LISTEN or name not in file}
    return {**file, **wins}


def store_new_key(path: Path) -> str:
    """Make a key and append it to `path`, which no other user can read at any moment.

    A shell that reads the file exports the key to what it starts. `docker run --env-file` takes nothing but lines
    NAME=VALUE, as which it reads the second one, too.
    """
    key = new_key()
    line = f"{KEY}={key}\nEXPORTED=yes;export {KEY}\n"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(line)
    except FileExistsError:
        path.chmod(0o600)
        with path.open("r+") as file:
            file.write(line if file.read()[-1:] in ("", "\n") else f"\n{line}")
    return key


def status_address(launched: Launch, environment: Mapping[str, str]) -> dict[str, str]:
    """The variable for the default address of the status page, unless one is set or the port is taken."""
    if launched.is_set("ollama_metrics_listen", environment):
        return {}
    if not find_spec("prometheus_client"):
        print("ollama-auth: no status page: pip install prometheus-client")
        return {}
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(STATUS_ADDRESS)
        except OSError:
            port = STATUS_ADDRESS[1]
            print(f"ollama-auth: port {port} is taken: {METRICS_LISTEN}=HOST:PORT puts the status page elsewhere")
            return {}
    return {METRICS_LISTEN: "{}:{}".format(*STATUS_ADDRESS)}


def usage_db(launched: Launch, environment: Mapping[str, str]) -> dict[str, str]:
    """The variable for a ledger beside ENV_FILE, unless one is set or the folder can't be written."""
    if launched.is_set("ollama_usage_db", environment) or not os.access(".", os.W_OK):
        return {}
    return {USAGE_DB: str(Path("usage.db").absolute())}


def check_start(launched: Launch) -> None:
    """Raise ToolError if mitmdump could not start: it would say so late, and with the remedies of another program."""
    port = launched.port
    if not 0 < port < 65536:
        raise ToolError(f"port {port} is none: choose a --listen-port from 1 to 65535")
    for path in launched.certificates:
        check_certificate(path, launched.options.cert_passphrase or "")
    folder = Path(launched.options.confdir).expanduser()
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / "mitmproxy-ca.pem").exists() and not os.access(folder, os.W_OK):
        raise ToolError(f"{folder} can't be written, where mitmproxy keeps files: set HOME, or --set confdir=FOLDER")
    host = launched.listen_host
    for one in [host] if host else ["0.0.0.0", *["::"] * socket.has_dualstack_ipv6()]:  # noqa: S104, it is not used
        check_free(one, port)


def check_certificate(path: Path, password: str) -> None:
    """Raise ToolError if the file has no certificate, or no key for it."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(path, password=lambda: password)
    except ssl.SSLError:
        what = "has no certificate with its key: put both into that file, in PEM, and say --cert-passphrase if need be"
        raise ToolError(f"--certs: {path} {what}") from None
    except OSError as error:
        remedy = "name a file that is there and that this user may read"
        raise ToolError(f"--certs: {path} can't be read ({error.strerror}): {remedy}") from None


def check_free(host: str, port: int) -> None:
    """Raise ToolError if this can't be listened on.

    Workers share their port, so they would share it with another gate that runs already, and with that one's keys.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        if host == "::" and error.errno == errno.EADDRNOTAVAIL:
            return  # IPv6 is turned off, which asyncio takes as well.
        why = {
            errno.EADDRINUSE: f"port {port} is taken: end what listens there, or choose another --listen-port",
            errno.EACCES: f"this user may not listen on port {port}: choose a --listen-port from 1024",
        }
        other = f"{host} is no address of this machine: correct --listen-host"
        raise ToolError(why.get(error.errno or 0, other)) from None


def gate_command(upstream: str, launched: Launch) -> list[str]:
    """The command line of the gate, or of the supervisor of several."""
    program = [sys.executable, str(TOOLS / "mitmdump.py")]
    if launched.workers > 1:
        program = [sys.executable, str(TOOLS), "supervisor", str(launched.workers), *program]
    if not launched.mode_in_arguments:
        parts = urlsplit(upstream)
        origin = f"reverse:{parts.scheme}://{parts.netloc}"
        program += ["--mode", launched.mode.full_spec if launched.mode else origin]
        program += ["--set", f"ollama_base_path={parts.path}"] if parts.path else []
    if launched.options.listen_port is None:
        program += ["--listen-port", str(launch.DEFAULT_PORT)]
    return [*program, "-s", str(ADDON), *launched.arguments]


def become(command: list[str], environment: Mapping[str, str]) -> int:
    """Replace this process; on Windows, which can't, wait for the command and return its status.

    SIGINT is blocked until the program handles it.
    """
    sys.stdout.flush()
    if sys.platform == "win32":
        return subprocess.call(command, env=environment)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.execve(command[0], command, environment)  # noqa: S606, no shell is what we want


def chat_model(upstream: str) -> str | None:
    """The first model at the upstream that is not for embeddings. Raises OSError if nothing answers."""
    parts = urlsplit(upstream)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(parts.netloc, timeout=2)
    try:
        connection.request("GET", f"{parts.path}/api/tags")
        names = re.findall(rb'"name"\s*:\s*"([\w.:/-]+)"', connection.getresponse().read(1 << 20))
    except http.client.HTTPException:
        return None
    finally:
        connection.close()
    return next((name.decode() for name in names if b"embed" not in name), None)


def guidance(address: str, made_key: str | None, key_in_file: bool, model: str | None) -> str:
    """The next steps, for a person. Holds the key only if it was made just now, and only once."""
    curl = f'curl -N {address}/api/{"chat" if model else "tags"} -H "Authorization: Bearer ${KEY}"'
    if model:
        curl += f""" -d '{{"model":"{model}","messages":[{{"role":"user","content":"Hello!"}}]}}'"""
    if not made_key:
        load = f"  set -a; . {shlex.quote(str(ENV_FILE.resolve()))}; set +a\n" if key_in_file else ""
        return f"ollama-auth: {address} is open to whoever has the key. Try it from another shell:\n{load}  {curl}\n"
    key = f'os.environ["{KEY}"]'
    return f"""\
ollama-auth: {address} is open to whoever has the key: a new one, kept in {ENV_FILE}, shown only now:
  export {KEY}={made_key}
Then, in that shell:
  {curl}
In Python:
  ollama.Client("{address}")
  openai.OpenAI(base_url="{address}/v1", api_key={key})
  anthropic.Anthropic(base_url="{address}", api_key={key})
"""


class Processes:
    """The fake Ollama server and the gate, in this order. Each ends with the other, and both with this process."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []
        self.stopping = False
        for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):
            signal.signal(getattr(signal, name), self.stop)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        # In a process group of its own: otherwise Ctrl-C would reach it twice, from the terminal and from this process.
        process = subprocess.Popen(command, text=True, process_group=0, **options)
        self.started.append(process)
        if self.stopping:
            process.terminate()
        return process

    def stop(self, *_: object) -> None:
        """Terminate the gate alone, so that its running requests can end; the other is terminated after it."""
        self.stopping = True
        for process in self.started[-1:]:
            process.terminate()


def serve_demo(launched: Launch, environment: Mapping[str, str], guide: Callable[[str], str]) -> int:
    """Run the gate in front of a fake Ollama server until one of them ends; the status of the gate."""
    processes = Processes()
    demo_ended_first = False

    def wait_for_demo() -> None:
        nonlocal demo_ended_first
        demo.communicate()
        demo_ended_first = gate.poll() is None
        processes.stop()

    command = [sys.executable, str(TOOLS), "demo_upstream", "--port", "0"]
    demo = processes.start(command, stdout=subprocess.PIPE)
    try:
        ready = demo.stdout.readline().split() if demo.stdout else []
        if processes.stopping:
            say("interrupted")
            return INTERRUPTED
        if not ready:
            raise ToolError("the demo did not start")
        gate = processes.start(gate_command(ready[-1], launched), env={**environment, GUIDANCE: guide("demo")})
        threading.Thread(target=wait_for_demo, daemon=True).start()
        status = gate.wait()
        if demo_ended_first:
            raise ToolError("the demo ended, and the gate with it")
        return status if status >= 0 else INTERRUPTED if processes.stopping else 128 - status
    finally:
        for process in processes.started:
            process.terminate()
            process.wait()


def keys_file_beside(launched: Launch, environment: Mapping[str, str]) -> dict[str, str]:
    """The variable for keys.toml beside ENV_FILE, unless another file is set: the console adds keys to it.

    It is made if there is none; in a folder that can't be written there is no keys file then.
    """
    if launched.is_set("ollama_keys_file", environment):
        return {}
    file = ENV_FILE.absolute().with_name("keys.toml")
    with suppress(OSError, FieldError):
        keys_editor.make(file)
    return {KEYS_FILE: str(file)} if file.is_file() else {}


def serve(command_line: Sequence[str]) -> int:
    """Start the gate, in place of this process where that is possible. Raises ToolError."""
    launched = launch.read(command_line)
    file = read_env_file()
    if KEY in file and os.name == "posix" and ENV_FILE.stat().st_mode & 0o077:
        say(f"others may read {ENV_FILE}: chmod 600 {ENV_FILE}")
    environment = merge(os.environ, file)
    check_start(launched)
    environment |= status_address(launched, environment)
    environment |= usage_db(launched, environment)
    upstream = launched.upstream(environment)
    environment[SELF_CHECK] = secrets.token_hex(8)
    made_key = None
    if not launched.has_keys(environment):
        try:
            environment[KEY] = made_key = store_new_key(ENV_FILE)
        except OSError as error:
            where = f"{ENV_FILE.absolute()} can't be written ({error.strerror})"
            raise ToolError(f"no key is set, and {where}: set {KEY}, or start in a folder of your own") from None
    if is_given(environment.get(KEY)):
        environment |= keys_file_beside(launched, environment)
    guide = partial(guidance, launched.address, made_key, KEY in file and KEY not in os.environ)
    if launched.demo:
        return serve_demo(launched, environment, guide)
    nothing = ""
    model = None
    try:
        model = chat_model(upstream)
    except OSError:
        nothing = f"ollama-auth: nothing answers at {upstream} yet: start Ollama there, or set OLLAMA_ENDPOINT\n"
    return become(gate_command(upstream, launched), {**environment, GUIDANCE: nothing + guide(model)})


def main() -> int:
    try:
        return serve(sys.argv[1:])
    except ToolError as error:
        say(str(error))
    except OSError as error:
        say(f"{error.filename or 'this machine'}: {error.strerror}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
