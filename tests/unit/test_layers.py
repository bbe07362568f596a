"""Imports run down only, between the layers of the package and between the modules of a layer."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from tests.harness.base import ROOT

PACKAGE = ROOT / "addons" / "ollama_auth"
LAYERS = """
    __main__ | addon | lifecycle console | proxy | mitmweb | runtime leases
    | authorizer response_filter telemetry process | exchange settings
    | option_table | auth | http | ollama_api | bounded_copy clock errors turns units | __init__
"""
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS.split("|")) for room in rooms.split()}
"""From the top, 0, down."""


def imports() -> Iterator[tuple[str, str]]:
    """(module, a module it imports), such as ("proxy.layer", "exchange"); those for type checkers count as well."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                above = module.split(".")[: -node.level]
                base = [*above, *(node.module or "").split(".")] if node.module else above
                for alias in node.names:
                    whole = PACKAGE.joinpath(*base, alias.name)
                    is_module = whole.is_dir() or whole.with_suffix(".py").is_file()
                    yield module, ".".join([*base, alias.name] if is_module else base) or "__init__"


def room(module: str) -> str:
    return module.split(".")[0]


def test_imports_run_down_only() -> None:
    faults = [
        f"{module} imports {used}, which is {'beside' if FLOOR[room(module)] == FLOOR[room(used)] else 'above'} it"
        for module, used in imports()
        if room(module) != room(used) and not module.endswith("__init__") and FLOOR[room(module)] >= FLOOR[room(used)]
    ]
    assert faults == []


def test_no_modules_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for module, used in imports():
        graph.setdefault(module, set()).add(used)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as fault:
        raise AssertionError(f"these import each other: {' -> '.join(fault.args[1])}") from None
