"""python scripts/tools [NAME] [ARGUMENTS], or `ollama-auth` of a wheel: run a tool; serve, if none is named."""

import runpy
import sys
from importlib import metadata
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
INSTALLED = TOOLS.parent.name == "ollama_auth"
HELP = """\
Usage: ollama-auth [serve] [ARGUMENTS]  start the gateway; `ollama-auth serve --help` says more
       ollama-auth keys COMMAND         make, list and revoke keys
       ollama-auth usage FILE           summarize access logs
       ollama-auth doctor [ARGUMENTS]   look for ways around the gateway that `serve` would start
       ollama-auth addon                print the path of the addon: mitmweb -s "$(ollama-auth addon)"
       ollama-auth --version
"""


def main() -> None:
    """Run the tool that the arguments name. Raises SystemExit."""
    given = sys.argv[1:2]
    if INSTALLED and given in (["-h"], ["--help"], ["help"]):
        sys.exit(print(HELP, end=""))
    if INSTALLED and given == ["--version"]:
        sys.exit(print(f"ollama-auth {metadata.version('ollama-auth')}"))
    names = {path.stem for path in TOOLS.iterdir() if path.stem.isidentifier() and not path.stem.startswith("_")}
    if given and not given[0].startswith("-") and given[0] not in names:
        sys.exit(f"ollama-auth: there is no command {given[0]}: it is serve, keys, usage, doctor or addon")
    name = sys.argv.pop(1) if given and given[0] in names else "serve"
    root = TOOLS.parent.parent
    sys.path[:1] = [] if INSTALLED else [str(root), str(root / "addons")]
    runpy.run_module(f"{TOOLS.parent.name}.tools.{name}", run_name="__main__", alter_sys=True)


if __name__ != "__main__":
    raise ImportError("this is a program, and no script for mitmdump")
main()
