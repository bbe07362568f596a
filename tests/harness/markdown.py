"""Read the Markdown pages of this repository: code blocks, tables, headings, and names of tests."""

import re
from pathlib import Path
from typing import NamedTuple

from tests.harness.base import ROOT

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for where in ("README.md", ".github/*.md", "scripts/**/*.md", "tests/**/*.md")
    for path in ROOT.glob(where)
}
README, DEPLOYMENT = "README.md", "scripts/docs/deployment.md"
CLIENTS, TROUBLESHOOTING = "scripts/docs/clients.md", "scripts/docs/troubleshooting.md"
CONSOLE = "scripts/docs/console.md"
KEYS, OPTIONS, LOGGING = "scripts/docs/keys.md", "scripts/docs/options.md", "scripts/docs/logging.md"
CHANGES, REPLICAS = "scripts/docs/changes.md", "scripts/docs/replicas.md"


class Block(NamedTuple):
    """A fenced code block, and the nearest heading above it."""

    heading: str
    text: str


def blocks(page: str, language: str) -> list[Block]:
    """Fenced code blocks of a page in one language."""
    text = PAGES[page]
    found = []
    for match in FENCED.finditer(text):
        if match[1] == language:
            above = FENCED.sub("", text[: match.start()])
            found.append(Block(HEADING.findall(above)[-1], match[2]))
    return found


def block(page: str, language: str, heading: str) -> str:
    """The only code block in that language under that heading."""
    (found,) = [block.text for block in blocks(page, language) if block.heading == heading]
    return found


def commands(page: str) -> list[str]:
    """Lines of the shell blocks of a page."""
    return [line for block in blocks(page, "sh") for line in block.text.splitlines()]


def tables(page: str, heading: str) -> list[list[tuple[str, ...]]]:
    """Tables under that heading, each as a list of rows without the header. A row is a tuple of cells."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGES[page], flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", FENCED.sub("", section), maxsplit=1, flags=re.MULTILINE)[0]
    return [
        [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()[2:]]
        for table in re.findall(r"(?:^\|.*\n?)+", section, re.MULTILINE)
    ]


def names(table: list[tuple[str, ...]]) -> list[str]:
    """Code spans in the first column of a table."""
    return [name for row in table for name in re.findall(r"`([^`]+)`", row[0])]


def anchors(page: str) -> set[str]:
    """Anchors of a page, as GitHub derives them from headings."""
    headings = HEADING.findall(FENCED.sub("", PAGES[page]))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tests() -> set[str]:
    """Names of all tests, as file.py::test."""
    return {
        f"{path.name}::{name}"
        for path in Path(ROOT, "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
