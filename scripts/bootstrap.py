"""bootstrap.py REQUIREMENTS TOOL [ARGUMENTS]: install REQUIREMENTS in .venv, then run scripts/tools/TOOL with it.

python.sh runs it with the Python of a complete .venv, else with another one. A stamp file says what is installed. It is
removed before each change and written after it, so an environment that was left incomplete is made again.
"""

# ruff: noqa: E402, because SIGINT, which python.sh has ignored, comes first.
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
VENV = SCRIPTS.parent / ".venv"
PYTHON = str(VENV / "bin" / "python")
STAMP = VENV / "installed"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")


def say(text: str) -> None:
    print(f"ollama-auth: {text}", file=sys.stderr, flush=True)


def version() -> str:
    """The version of the environment's Python, such as 3.13; empty if it does not run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2], end='')"
    try:
        return subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def finished() -> dict[str, str]:
    """The stamp of a complete environment: its Python, and the digests of the files installed. Else empty."""
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if stamp.get("python") == version() else {}


def check_writable() -> None:
    """Raise SystemExit if this user can't make or change the environment, or if others may use it."""
    place = VENV if VENV.exists() else VENV.parent
    if VENV.is_symlink():
        say(f"{VENV} is a link, and what it leads to is not complete: remove it, or complete that where it belongs")
    elif place.stat().st_uid != os.geteuid() and VENV.exists():
        say(f"{VENV} belongs to another user and is not complete: run this as that user, or in a checkout of your own")
    elif not os.access(place, os.W_OK):
        say(f"{place} can't be written, and needs an environment: run this as the owner, or in a checkout of your own")
    else:
        return
    raise SystemExit(1)


def run(command: list[str], lock: int) -> None:
    """Run a program. Raises CalledProcessError.

    It inherits the lock, so that this is held until the program ends, even if this process is killed. Ctrl-C does not
    reach it, because it would print a traceback; it is ended with all that it started.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[lock], process_group=0)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if status:
        raise subprocess.CalledProcessError(status, command)


def prepare(requirements: str, lock: int) -> None:
    """Install the file unless the stamp has its digest. `lock` is a locked file. Raises CalledProcessError, OSError."""
    digests = {name: hashlib.sha256((SCRIPTS / name).read_bytes()).hexdigest() for name in REQUIREMENTS}
    stamp = finished()
    if stamp.get(requirements) == digests[requirements]:
        return
    check_writable()
    STAMP.unlink(missing_ok=True)
    if not stamp:
        say(f"making .venv with Python {sys.version.split()[0]} …")
        run([sys.executable, "-m", "venv", "--clear", str(VENV)], lock)
    say("installing the pinned dependencies; the first time takes a minute …")
    pip = [PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", "--require-hashes"]
    run([*pip, "-r", str(SCRIPTS / requirements)], lock)
    # Keep the entry of the other file if that is unchanged.
    kept = {name: digest for name, digest in stamp.items() if digests.get(name) == digest}
    STAMP.write_text(json.dumps({**kept, "python": version(), requirements: digests[requirements]}))


def become(python: str, tool: str, arguments: tuple[str, ...]) -> None:
    """Run the tool in place of this process. SIGINT is blocked until it handles it: see tools/__main__.py."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.execv(python, [python, str(SCRIPTS / "tools"), tool, *arguments])  # noqa: S606, no shell is what we want


def main(requirements: str, tool: str, *arguments: str) -> None:
    try:
        if {"-h", "--help", "--version"} & set(arguments[:1]):
            become(sys.executable, tool, arguments)  # That needs no environment.
        with Path(__file__).open() as file:  # of two runs at once, the second waits here
            fcntl.flock(file, fcntl.LOCK_EX)
            prepare(requirements, file.fileno())
        become(PYTHON, tool, arguments)
    except subprocess.CalledProcessError as error:
        say(f"that failed with status {error.returncode}; see above. Check the network, then run this again.")
    except OSError as error:
        say(f"{error.filename or VENV}: {error.strerror}")
    except KeyboardInterrupt:
        say("interrupted")
        raise SystemExit(130) from None
    raise SystemExit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
