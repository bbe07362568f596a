"""bootstrap.py REQUIREMENTS TOOL [ARGUMENTS]: runs scripts/tools/TOOL in the checkout's .venv, made with REQUIREMENTS.

python.sh starts it with the .venv's own Python if that is finished and sound, else with one from elsewhere. The stamp
is removed before the environment is touched and written after, so that one that was left half made is made anew.
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
    """What the environment's Python calls itself, such as 3.13; nothing if it doesn't run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2], end='')"
    try:
        return subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def finished() -> dict[str, str]:
    """The stamp of an environment that is whole and runs, else nothing: its Python, the digests of what it holds."""
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if stamp.get("python") == version() else {}


def prepare(requirements: str, lock: int) -> None:
    digests = {name: hashlib.sha256((SCRIPTS / name).read_bytes()).hexdigest() for name in REQUIREMENTS}
    stamp = finished()
    if stamp.get(requirements) == digests[requirements]:
        return
    STAMP.unlink(missing_ok=True)
    # The children inherit the lock: it holds as long as one of them writes, whatever becomes of this process.
    if not stamp:
        say(f"making .venv with Python {sys.version.split()[0]} …")
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True, pass_fds=[lock])
    say("installing the pinned dependencies; the first time takes a minute …")
    pip = [PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", "--require-hashes"]
    subprocess.run([*pip, "-r", str(SCRIPTS / requirements)], check=True, pass_fds=[lock])
    # The other file stays installed only where it was, as it is now.
    kept = {name: digest for name, digest in stamp.items() if digests.get(name) == digest}
    STAMP.write_text(json.dumps({**kept, "python": version(), requirements: digests[requirements]}))


def main(requirements: str, tool: str, *arguments: str) -> None:
    with Path(__file__).open() as file:  # two runs at once: the second waits here, then finds it done
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            prepare(requirements, file.fileno())
        except subprocess.CalledProcessError as error:
            say(f"that failed (status {error.returncode}), in the words above. Is the network up? Then run this again.")
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
    os.execv(PYTHON, [PYTHON, str(SCRIPTS / "tools"), tool, *arguments])  # noqa: S606, no shell is what we want


if __name__ == "__main__":
    main(*sys.argv[1:])
