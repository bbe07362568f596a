"""bootstrap.py REQUIREMENTS TOOL [ARGUMENTS]: install REQUIREMENTS in .venv, then run scripts/tools/TOOL with it.

python.sh runs it with the Python of a complete .venv, else with another one. A stamp file says what is installed. It is
removed before each change and written after it, so an environment that was left incomplete is made again.
"""

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


def prepare(requirements: str, lock: int) -> None:
    """Install the file unless the stamp has its digest. `lock` is a locked file. Raises CalledProcessError."""
    digests = {name: hashlib.sha256((SCRIPTS / name).read_bytes()).hexdigest() for name in REQUIREMENTS}
    stamp = finished()
    if stamp.get(requirements) == digests[requirements]:
        return
    STAMP.unlink(missing_ok=True)
    # The children inherit the lock, so it is held until the last of them ends, even if this process is killed.
    if not stamp:
        say(f"making .venv with Python {sys.version.split()[0]} …")
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True, pass_fds=[lock])
    say("installing the pinned dependencies; the first time takes a minute …")
    pip = [PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", "--require-hashes"]
    subprocess.run([*pip, "-r", str(SCRIPTS / requirements)], check=True, pass_fds=[lock])
    # Keep the entry of the other file if that is unchanged.
    kept = {name: digest for name, digest in stamp.items() if digests.get(name) == digest}
    STAMP.write_text(json.dumps({**kept, "python": version(), requirements: digests[requirements]}))


def main(requirements: str, tool: str, *arguments: str) -> None:
    with Path(__file__).open() as file:  # of two runs at once, the second waits here
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            prepare(requirements, file.fileno())
        except subprocess.CalledProcessError as error:
            say(f"that failed with status {error.returncode}; see above. Check the network, then run this again.")
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
    os.execv(PYTHON, [PYTHON, str(SCRIPTS / "tools"), tool, *arguments])  # noqa: S606, no shell is what we want


if __name__ == "__main__":
    main(*sys.argv[1:])
