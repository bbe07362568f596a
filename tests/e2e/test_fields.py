"""Every field of a key that can be set, by each way there is: the file, the option of scripts/keys, the console."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ollama_auth.auth.key_fields import ROWS
from ollama_auth.auth.keys import Principal, Scope
from ollama_auth.auth.keys_file import load
from scripts.tools.keys import __main__ as cli
from scripts.tools.keys.commands import UNSET
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Ready
from tests.harness.keys_file import faults, key
from tests.harness.tools import Said, call
from tests.harness.upstream import Upstream
from tests.harness.wire import Response, ask


class Example(NamedTuple):
    """A value as JSON has it, and as Principal has it; and what can't be typed, with a part of what is said then."""

    shown: Any
    value: object
    wrong: dict[str, str]


LIMIT = Example(60, 60, {"0": "is not from 1 to", "1000000000000000": "is not from 1 to", "many": "whole number"})
EXAMPLES = {
    "scopes": Example(["pull", "account"], frozenset({Scope.PULL, Scope.ACCOUNT}), {"infere": "did you mean infer?"}),
    "models": Example(["llama3.2", "qwen*"], ("llama3.2", "qwen*"), {"a b": "is not a valid name of a model"}),
    "expires": Example(
        "2127-01-01T00:00:00Z",
        4954435200.0,
        {"yesterday": "is not a time", "2020-01-01": "is over", '2099-01-01\nscopes = ["admin"]': "is not a time"},
    ),
    "requests_per_minute": LIMIT,
    "concurrent_requests": LIMIT,
    "tokens_per_day": LIMIT,
    "tokens_per_month": LIMIT,
    "note": Example("room 7", "room 7", {"a\nb": "is not one line", "x" * 257: "is not one line"}),
}
FIELDS = {field.name: field for field in ROWS if field.option}
SHOWN = {name: example.shown for name, example in EXAMPLES.items()}


class Ways:
    """A gate with a keys file, the command line and the console, by which it can be changed."""

    def __init__(self, gate: Ready, file: Path) -> None:
        self.gate = gate
        self.file = file

    def run(self, *arguments: str) -> Said:
        return call(cli.main, *arguments, folder=self.file.parent)

    def send(self, method: str, path: str, body: object = None) -> Response:
        data = b"" if body is None else json.dumps(body).encode()
        return ask(self.gate.watch, method, f"/console/{path}", "Host: localhost", bearer("boss"), body=data)


@pytest.fixture(scope="module")
def ways(shared_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    assert FIELDS.keys() == EXAMPLES.keys(), "give the new field of a key an example in EXAMPLES of test_fields.py"
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(entry("boss", scopes=["all", "admin"]) + entry("plain") + entry("file", **SHOWN))
    file.chmod(0o600)
    with Ready(shared_upstream.url, "--set", f"ollama_keys_file={file}") as gate:
        yield Ways(gate, file)


def option(name: str, *values: object) -> list[str]:
    """The option of a field with values."""
    chosen = FIELDS[name].option
    assert chosen
    return [f"--{chosen.name}", *map(str, values)]


def items(shown: Any) -> list[Any]:
    """What a list holds, or the one value."""
    return shown if isinstance(shown, list) else [shown]


def test_every_field_is_set_shown_and_removed(ways: Ways) -> None:
    options = [word for name, shown in SHOWN.items() for word in option(name, *items(shown))]
    for command in (["add", "added", *options], ["add", "edited"], ["edit", "edited", *options]):
        said = ways.run(*command)
        assert said.status == 0, said.err
    assert ways.send("POST", "keys", {"name": "made"} | SHOWN).status == 200
    assert ways.send("POST", "keys", {"name": "changed"}).status == 200
    assert ways.send("PATCH", "keys/changed", SHOWN).status == 200
    by_command = {one["name"]: one for one in ways.run("list", "--json").json}
    by_console = {one["name"]: one for one in ways.send("GET", "keys").json["keys"]}
    in_force = {one.principal.name: one.principal for one in load(ways.file)[0]}
    values: dict[str, Any] = {name: example.value for name, example in EXAMPLES.items()}
    for name in ("file", "added", "edited", "made", "changed"):
        assert by_command[name].items() >= SHOWN.items()
        assert by_console[name].items() >= SHOWN.items()
        assert in_force[name] == Principal(name, **values)
    shown = ways.run("show", "added").out
    assert all(str(item) in shown for value in SHOWN.values() for item in items(value))
    form = ways.send("GET", "me").json["fields"]
    assert [field["name"] for field in form if field["label"] and field["meaning"]] == list(FIELDS)
    assert ways.send("PATCH", "keys/changed", dict.fromkeys(SHOWN)).status == 200
    assert ways.run("edit", "edited", "--unset", *UNSET).status == 0
    plain = ways.run("show", "plain", "--json").json
    for name in ("edited", "changed"):
        assert ways.run("show", name, "--json").json == plain | {"name": name}


def test_a_value_that_cannot_be_is_refused_in_every_way(ways: Ways) -> None:
    before = ways.file.read_text()
    for name, example in EXAMPLES.items():
        for text, fault in example.wrong.items():
            said = ways.run("add", "x", *option(name, text))
            assert (said.status, fault in said.err) == (2, True), said.err
            value = int(text) if text.isdigit() else [text] if FIELDS[name].many else text
            for method, path, body in (("POST", "keys", {"name": "x"}), ("PATCH", "keys/plain", {})):
                refused = ways.send(method, path, body | {name: value})
                assert (refused.status, refused.json["error"].startswith(f"{name} ")) == (400, True), refused.body
                assert fault in refused.json["error"]
            (told,) = faults(key(f"{name} = {json.dumps(value)}"))
            assert told.startswith(f"keys.toml: alice: {name} ")
    assert ways.file.read_text() == before
