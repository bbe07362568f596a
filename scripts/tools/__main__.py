"""python scripts/tools NAME [ARGUMENTS]: run a tool, with the repository and addons/ on Python's path."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

if __name__ == "__main__":
    name = sys.argv.pop(1)
    sys.path[:1] = [str(ROOT), str(ROOT / "addons")]
    runpy.run_module(f"scripts.tools.{name}", run_name="__main__", alter_sys=True)
