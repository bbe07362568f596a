"""`ollama-auth` and `python -m ollama_auth`: run a tool. A wheel has them in tools/, a checkout in scripts/tools."""

import runpy
from pathlib import Path

from . import IMPORTED  # noqa: F401, not a script: see __init__.py


def main() -> None:
    """Run the tool that the arguments name. Raises SystemExit."""
    here = Path(__file__).resolve().parent
    installed = here / "tools"
    runpy.run_path(str(installed if installed.is_dir() else here.parents[1] / "scripts" / "tools"), run_name="__main__")


if __name__ == "__main__":
    main()
