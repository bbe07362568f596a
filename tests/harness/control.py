"""A second script beside auth.py: runs what a test puts into CONTROL_DIR, inside the mitmdump under test.

It plays the operator, and other people's broken addons.
"""

import asyncio
import os
import traceback
from pathlib import Path

from mitmproxy import ctx


class Control:
    def running(self) -> None:
        self.task = asyncio.create_task(self.watch())

    async def watch(self) -> None:
        while True:
            look(Path(os.environ["CONTROL_DIR"]))
            await asyncio.sleep(0.01)


def look(folder: Path) -> None:
    for todo in sorted(folder.glob("*.todo")):
        code = todo.read_text()
        todo.unlink()
        names: dict[str, object] = {"ctx": ctx}
        try:
            exec(code, names)  # noqa: S102 - that is what it is for
            said = repr(names.get("result"))
        except Exception:
            said = traceback.format_exc()
        answer = todo.with_suffix(".part")
        answer.write_text(said)
        answer.rename(todo.with_suffix(".done"))


addons = [Control()]
