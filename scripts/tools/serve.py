"""Usage: scripts/serve [--demo] [--workers N] [mitmdump arguments]

Runs the gate on port 8081, in front of the Ollama at OLLAMA_ENDPOINT (http://127.0.0.1:11434 unless set).

  --demo   put a small stand-in behind the gate instead of Ollama
  --workers N
           so many processes that share the port, for more than one processor
  --help   show this

Everything else goes to mitmdump, such as --listen-port 9000, --listen-host 127.0.0.1, --certs cert.pem.

Variables come from the environment, else from .env.local in the working directory (lines OLLAMA_…=value):
OLLAMA_API_KEY, OLLAMA_API_KEY_FILE, OLLAMA_KEYS_FILE, OLLAMA_ENDPOINT, and OLLAMA_METRICS_LISTEN (where the status page
and the metrics are: 127.0.0.1:9464 unless set; empty: nowhere). Where none of them names a key, one is made, kept in
.env.local and shown once.
"""

import argparse
import errno
import http.client
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

REPOSITORY = Path(__file__).resolve().parents[2]
ENV_FILE = Path(".env.local")
DEFAULT_ENDPOINT = "http://127.0.0.1:11434"
PORT = "8081"
ENV_LINE = re.compile(r"""\s*(?:export\s+)?(\w+)\s*=\s*(?:(['"])(.*)\2|(.*?))(?:\s+#.*)?\s*""")
WATCH, WATCH_ADDRESS = "OLLAMA_METRICS_LISTEN", ("127.0.0.1", 9464)
KEY, KEY_FILE, KEYS_FILE = "OLLAMA_API_KEY", "OLLAMA_API_KEY_FILE", "OLLAMA_KEYS_FILE"


class Problem(Exception):
    """Why there is nothing to run, and the remedy; never holds a secret."""


def endpoint(text: str | None) -> str:
    """OLLAMA_ENDPOINT -> the URL mitmproxy wants, which would take one without a scheme for https."""
    url = (text or "").strip() or DEFAULT_ENDPOINT
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if sound and "@" not in parts.netloc and parts.path in ("", "/") and not parts.query + parts.fragment:
            return f"{parts.scheme}://{parts.netloc}"
    except ValueError:
        pass
    raise Problem("OLLAMA_ENDPOINT has to look like http://HOST:PORT, without a path and without a password")


def read_env(text: str) -> dict[str, str]:
    """The variables of ours in an env file. The rest of it is for others: it can't reach the gate's PATH or Python."""
    found = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not (match := ENV_LINE.fullmatch(line)):
            raise Problem(f"{ENV_FILE}, line {number} is not of the form NAME=value")
        name, _, quoted, bare = match.groups()
        if name.startswith("OLLAMA_"):
            found[name] = bare if quoted is None else quoted
    return found


def merge(real: Mapping[str, str], file: Mapping[str, str]) -> dict[str, str]:
    """The real environment wins; a key it names in one form puts the file's other form aside."""
    if KEY in real or KEY_FILE in real:
        file = {name: value for name, value in file.items() if name not in (KEY, KEY_FILE)}
    return {**file, **real}


def make_key(path: Path) -> str:
    """A new key, kept in `path`, which nobody else may read at any moment."""
    key = f"sk-ollama-{secrets.token_hex(16)}"
    line = f"{KEY}={key}\n"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(line)
    except FileExistsError:
        path.chmod(0o600)
        with path.open("r+") as file:
            file.write(line if file.read()[-1:] in ("", "\n") else f"\n{line}")
    return key


class Arguments(NamedTuple):
    """What of mitmdump's arguments concerns us; they all still go to mitmdump."""

    demo: bool
    workers: int
    rest: list[str]
    options: dict[str, str]
    address: str


def split(arguments: Sequence[str]) -> Arguments:
    parser = argparse.ArgumentParser(prog="scripts/serve", add_help=False, allow_abbrev=False)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    ours, rest = parser.parse_known_args(arguments)
    if ours.workers < 1 or (ours.workers > 1 and not hasattr(socket, "SO_REUSEPORT")):
        raise Problem("--workers takes a number from 1; more than 1 can't share a port on this system")
    parser.add_argument("-p", "--listen-port")
    parser.add_argument("--listen-host")
    parser.add_argument("--certs", "--cert", action="append")
    parser.add_argument("--set", action="append", default=[])
    seen = parser.parse_known_args(rest)[0]
    options = dict(spec.partition("=")[::2] for spec in seen.set)
    host = seen.listen_host or options.get("listen_host")
    if host in (None, "", "0.0.0.0", "::"):  # noqa: S104, a browser can't go to where everything listens
        host = "127.0.0.1"
    port = seen.listen_port or options.get("listen_port") or PORT
    scheme = "https" if seen.certs or "certs" in options else "http"
    address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    return Arguments(ours.demo, ours.workers, rest, options, address)


def watching(arguments: Arguments, environment: Mapping[str, str]) -> dict[str, str]:
    """Where the status page and the metrics are unless the user says: on this machine alone, if the port is free."""
    if WATCH in environment or "ollama_metrics_listen" in arguments.options:
        return {}
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(WATCH_ADDRESS)
        except OSError:
            print(f"ollama-auth: port {WATCH_ADDRESS[1]} is taken: {WATCH}=HOST:PORT puts the status page elsewhere")
            return {}
    return {WATCH: "{}:{}".format(*WATCH_ADDRESS)}


def check_free(address: str) -> None:
    """Where workers share the port, others on it would go unnoticed, and let in whom their keys let in."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    try:
        socket.create_server((host, parts.port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Problem(
                f"port {parts.port} is taken: end what listens there, or choose another --listen-port"
            ) from error


def gate_command(upstream: str, arguments: Arguments) -> list[str]:
    folder = Path(sys.executable).parent
    mitmdump = shutil.which("mitmdump", path=str(folder))
    if not mitmdump:
        raise Problem(f"there is no mitmdump in {folder}: pip install -r scripts/requirements.txt")
    program = [sys.executable, str(REPOSITORY / "scripts" / "tools" / "mitmdump.py")]
    if arguments.workers > 1:
        program = [
            sys.executable,
            str(REPOSITORY / "scripts" / "tools" / "supervisor.py"),
            str(arguments.workers),
            *program,
        ]
    port = [] if "listen_port" in arguments.options else ["--listen-port", PORT]
    script = str(REPOSITORY / "addons" / "auth.py")
    return [*program, "--mode", f"reverse:{upstream}", *port, "-s", script, *arguments.rest]


def become(command: list[str], environment: Mapping[str, str]) -> int:
    """Replaces this process; on Windows, where that can't be, stays until the gate ends."""
    sys.stdout.flush()
    if sys.platform == "win32":
        return subprocess.call(command, env=environment)
    os.execve(command[0], command, environment)  # noqa: S606, no shell is what we want


def a_model(upstream: str) -> str | None:
    """The first model there that may chat; no answer raises OSError."""
    parts = urlsplit(upstream)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(parts.netloc, timeout=2)
    try:
        connection.request("GET", "/api/tags")
        names = re.findall(rb'"name"\s*:\s*"([\w.:/-]+)"', connection.getresponse().read(1 << 20))
    except http.client.HTTPException:
        return None
    finally:
        connection.close()
    return next((name.decode() for name in names if b"embed" not in name), None)


def guidance(address: str, new_key: str | None, key_in_file: bool, model: str | None) -> str:
    """What to do next. Only the first run shows the key, and only once."""
    curl = f'curl -N {address}/api/{"chat" if model else "tags"} -H "Authorization: Bearer ${KEY}"'
    if model:
        curl += f""" -d '{{"model":"{model}","messages":[{{"role":"user","content":"Hello!"}}]}}'"""
    if not new_key:
        load = f"  . {shlex.quote(str(ENV_FILE.resolve()))}\n" if key_in_file else ""
        return f"ollama-auth: {address} is open to whoever has the key. Try it from another shell:\n{load}  {curl}\n"
    key = f'os.environ["{KEY}"]'
    return f"""\
ollama-auth: {address} is open to whoever has the key: a new one, kept in {ENV_FILE}, shown only now:
  export {KEY}={new_key}
Then, in that shell:
  {curl}
In Python:
  ollama.Client("{address}")
  openai.OpenAI(base_url="{address}/v1", api_key={key})
  anthropic.Anthropic(base_url="{address}", api_key={key})
"""


class Family:
    """The demo and the gate: neither outlives the other, nor this process."""

    def __init__(self) -> None:
        self.members: list[subprocess.Popen[str]] = []
        self.stopping = False
        for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):
            signal.signal(getattr(signal, name), self.stop)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        # In a process group of its own: a Ctrl-C reaches it once, by way of this process.
        child = subprocess.Popen(command, text=True, process_group=0, **options)
        self.members.append(child)
        if self.stopping:
            child.terminate()
        return child

    def stop(self, *_: object) -> None:
        """The gate first, so that what runs in it can end well; the demo when the gate has ended."""
        self.stopping = True
        for child in self.members[-1:]:
            child.terminate()


def serve_demo(arguments: Arguments, environment: Mapping[str, str], guide: Callable[[str], str]) -> int:
    family = Family()
    demo_ended_first = False

    def watch() -> None:
        nonlocal demo_ended_first
        demo.communicate()
        demo_ended_first = gate.poll() is None
        family.stop()

    command = [sys.executable, str(REPOSITORY / "scripts" / "tools" / "demo_upstream.py"), "--port", "0"]
    demo = family.start(command, stdout=subprocess.PIPE)
    try:
        ready = demo.stdout.readline().split() if demo.stdout else []
        if not ready:
            raise Problem("the demo did not start")
        print(guide("demo"), flush=True)
        gate = family.start(gate_command(ready[-1], arguments), env=environment)
        threading.Thread(target=watch, daemon=True).start()
        status = gate.wait()
        if demo_ended_first:
            raise Problem("the demo ended, and the gate with it")
        return status if status >= 0 else 128 - status
    finally:
        for child in family.members:
            child.terminate()
            child.wait()


def serve(command_line: Sequence[str]) -> int:
    arguments = split(command_line)
    file = {}
    if ENV_FILE.exists():
        file = read_env(ENV_FILE.read_text("utf-8", "replace"))
        if KEY in file and os.name == "posix" and ENV_FILE.stat().st_mode & 0o077:
            print(f"ollama-auth: others may read {ENV_FILE}: chmod 600 {ENV_FILE}", file=sys.stderr)
    environment = merge(os.environ, file)
    if arguments.workers > 1:
        check_free(arguments.address)
    environment |= watching(arguments, environment)
    upstream = endpoint(environment.get("OLLAMA_ENDPOINT"))
    new_key = None
    if not {KEY, KEY_FILE, KEYS_FILE} & {*environment, *(name.upper() for name in arguments.options)}:
        environment[KEY] = new_key = make_key(ENV_FILE)
    guide = partial(guidance, arguments.address, new_key, KEY in file and KEY not in os.environ)
    if arguments.demo:
        return serve_demo(arguments, environment, guide)
    model = None
    try:
        model = a_model(upstream)
    except OSError:
        print(
            f"ollama-auth: nothing answers at {upstream} yet: start Ollama there, or set OLLAMA_ENDPOINT",
            flush=True,
        )
    print(guide(model), flush=True)
    return become(gate_command(upstream, arguments), environment)


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    try:
        return serve(sys.argv[1:])
    except Problem as problem:
        print(f"ollama-auth: {problem}", file=sys.stderr)
    except OSError as error:
        print(f"ollama-auth: {error.filename or 'this machine'}: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
