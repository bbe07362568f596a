"""Which tests may import what, and that tests/unit has the folders and names of the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.harness.base import ROOT
from tests.harness.cases import each_of

TESTS, UNIT = ROOT / "tests", ROOT / "tests" / "unit"
SUBJECTS = {
    "test_layers.py": "addons/ollama_auth",
    "test_layout.py": "tests",
    "test_script_files.py": "addons/ollama_auth",
    "proxy/test_internals.py": "addons/ollama_auth/proxy",
    "tools/test_bootstrap.py": "scripts/bootstrap.py",
    "tools/test_keys_cli.py": "scripts/tools/keys",
    "tools/test_launcher.py": "scripts/tools/mitmdump.py",
    "tools/test_packaging.py": "pyproject.toml",
    "tools/test_usage_report.py": "scripts/tools/usage",
}
"""The unit tests whose name does not say what they test, each with its subject."""
FILES = sorted(TESTS.rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(TESTS))


def imports(path: Path) -> Iterator[str]:
    """The full names of what a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@each_of("path", FILES, ids=name)
def test_no_test_is_imported(path: Path) -> None:
    """What tests share stands in tests/harness; the harness knows nothing of tests/tools, nor do unit tests."""
    names = [one.split(".") for one in imports(path)]
    assert not [one for one in names if one[0] == ""], "tests are imported by their full names"
    allowed = {"harness"} if path.relative_to(TESTS).parts[0] in ("unit", "harness") else {"harness", "tools"}
    assert {one[1] for one in names if one[0] == "tests"} <= allowed


@each_of("path", sorted(UNIT.rglob("test_*.py")), ids=lambda path: str(path.relative_to(UNIT)))
def test_a_unit_test_is_named_after_its_subject(path: Path) -> None:
    """tests/unit/<folder>/test_<module>.py tests <folder>/<module>.py of the package, or of scripts in tools/."""
    relative = path.relative_to(UNIT)
    module = relative.with_name(relative.stem.removeprefix("test_"))
    base = ROOT / "scripts" if module.parts[0] == "tools" else ROOT / "addons" / "ollama_auth"
    subject = SUBJECTS.get(str(relative))
    found = [base / module, (base / module).with_suffix(".py")] if subject is None else [ROOT / subject]
    assert any(one.exists() for one in found), f"rename it, or add its subject to SUBJECTS: {found}"
