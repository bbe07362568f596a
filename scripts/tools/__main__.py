"""python scripts/tools [NAME] [ARGUMENTS], or `ollama-auth` of a wheel: run a tool; serve, if none is named."""

# ruff: noqa: E402, because SIGINT, which the starter may have blocked, comes first.
import os
import signal
import sys


def interrupted(*_: object) -> None:
    """End with one line, wherever the program is. A tool that has something to clean up sets its own handler."""
    os.write(2, b"ollama-auth: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupted)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

import ast
import re
import runpy
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
INSTALLED = TOOLS.parent.name == "ollama_auth"
HELP = """\
Usage: ollama-auth [serve] [ARGUMENTS]  start the gateway; `ollama-auth serve --help` says more
       ollama-auth keys COMMAND         make, list and revoke keys
       ollama-auth usage [LOG...]       count requests and tokens, from the ledger or from access logs
       ollama-auth doctor [ARGUMENTS]   look for ways around the gateway that `serve` would start
       ollama-auth addon                print the path of the addon: mitmweb -s "$(ollama-auth addon)"
       ollama-auth --version
"""


def version() -> str:
    """Ours, which is all that `--version` prints: what runs may not be installed yet."""
    if INSTALLED:
        from importlib.metadata import version

        return version("ollama-auth")
    import tomllib

    project = TOOLS.parent.parent / "pyproject.toml"
    return str(tomllib.loads(project.read_text())["project"]["version"])


def usage_of(name: str) -> str | None:
    """The docstring of a tool, if that says how to use it. It is not imported: that takes a second, and libraries."""
    path = TOOLS / name
    text = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")
    found = ast.get_docstring(ast.parse(text)) or ""
    named = re.sub(r"\bscripts/(serve|keys|usage|doctor)\b", r"ollama-auth \1", found) if INSTALLED else found
    return named if found.startswith("Usage: ") else None


def main() -> None:
    """Run the tool that the arguments name. Raises SystemExit."""
    given = sys.argv[1:2]
    if INSTALLED and given in (["-h"], ["--help"], ["help"]):
        sys.exit(print(HELP, end=""))
    if given == ["--version"] or sys.argv[2:3] == ["--version"]:
        sys.exit(print(f"ollama-auth {version()}"))
    names = {path.stem for path in TOOLS.iterdir() if path.stem.isidentifier() and not path.stem.startswith("_")}
    if given and not given[0].startswith("-") and given[0] not in names:
        sys.exit(f"ollama-auth: there is no command {given[0]}: it is serve, keys, usage, doctor or addon")
    name = sys.argv.pop(1) if given and given[0] in names else "serve"
    if {"-h", "--help"} & set(sys.argv[1:]) and (usage := usage_of(name)):
        sys.exit(print(usage))
    root = TOOLS.parent.parent
    sys.path[:1] = [] if INSTALLED else [str(root), str(root / "addons")]
    runpy.run_module(f"{TOOLS.parent.name}.tools.{name}", run_name="__main__", alter_sys=True)


if __name__ != "__main__":
    raise ImportError("this is a program, and no script for mitmdump")
main()
