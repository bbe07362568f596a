"""Text in a CSV file, which a spreadsheet may take for a formula and run. Pure."""

import re

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

_FORMULA = re.compile(r"((?:^|[;\t\r\n])\s*)(?=[-=+@\uff0b\uff0d\uff1d\uff20])")
"""Where one would begin: a cell, also where cells end at semicolons, as in spreadsheets in German and French."""


def harmless(text: str) -> str:
    """Return the text with an apostrophe before what would be a formula."""
    return _FORMULA.sub(r"\1'", text)
