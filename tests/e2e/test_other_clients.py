"""Clients that tests install themselves (tests/harness/installed.py): for JavaScript, LangChain, litellm, and agents.

Each streams a chat through the gate, and shows with a wrong key what troubleshooting.md says.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.harness import installed
from tests.harness.base import KEY
from tests.harness.gate import Gate
from tests.harness.markdown import CLIENTS, Block, block, blocks
from tests.harness.upstream import Upstream

WRONG = "sk-ollama-wrong-0123456789abcdef"
REFUSED = "the key is not known here"
SAID = "your words came all the way"
PATIENCE = 150.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(installed.PATIENCE + 2 * PATIENCE)]
FOREIGN = ("OLLAMA_", "OPENAI_", "ANTHROPIC_", "LANGSMITH_", "CLAUDE", "CODEX_")
QUIET = {"LANGSMITH_TRACING": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""Without these, LangChain and litellm talk to their makers."""


def adapted(text: str, gate: Gate) -> str:
    """The example with the address of `gate` and a model that it has."""
    return text.replace("127.0.0.1:8081", f"127.0.0.1:{gate.port}").replace("llama3.2", "demo")


def output(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | str = "/", status: int = 0) -> str:
    """What a command says; its environment has none of our variables, nor those of clients, except KEY and `env`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    done = subprocess.run(
        command, env=clean | QUIET | {"OLLAMA_API_KEY": KEY} | dict(env or {}), cwd=cwd, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


# JavaScript.


@pytest.fixture(scope="module")
def javascript(folder: Path) -> Path:
    """A folder whose modules find the clients."""
    (folder / "node_modules").symlink_to(installed.node_modules("javascript"))
    shutil.copy(installed.CLIENTS / "streams.mjs", folder)
    return folder


def test_javascript(javascript: Path, gate: Gate) -> None:
    said = json.loads(output("node", "streams.mjs", gate.url, KEY, cwd=javascript))
    with_address = said.pop("ollama with the key in the address")
    assert len(said) == 6
    for client, one in said.items():
        assert "shows" not in one, client
        assert SAID in "".join(one["parts"]), client
        assert len(one["parts"]) > 3, client
    assert "URL that includes credentials" in with_address["shows"]


def test_javascript_with_a_wrong_key(javascript: Path, gate: Gate, upstream: Upstream) -> None:
    with upstream.untouched():
        said = json.loads(output("node", "streams.mjs", gate.url, WRONG, cwd=javascript))
    for client, one in said.items():
        assert not one["parts"], client
        assert ("URL that includes credentials" if "address" in client else REFUSED) in one["shows"], client


@pytest.mark.parametrize("code", blocks(CLIENTS, "js"), ids=lambda one: one.heading)
def test_the_example_for_javascript(code: Block, javascript: Path, gate: Gate) -> None:
    (javascript / "example.mjs").write_text(adapted(code.text, gate))
    assert SAID in output("node", "example.mjs", cwd=javascript)


# LangChain and litellm.

BEGIN = """
import json, os
url, key, ask = "http://127.0.0.1:8081", os.environ["OLLAMA_API_KEY"], [{"role": "user", "content": "Hello!"}]
"""
PYTHON = {
    "langchain-ollama": "from langchain_ollama import ChatOllama as Chat; chat = Chat(model='demo', base_url=url)",
    "langchain-openai": """
from langchain_openai import ChatOpenAI as Chat; chat = Chat(model='demo', base_url=url + '/v1', api_key=key)""",
    "langchain-anthropic": """
from langchain_anthropic import ChatAnthropic as Chat; chat = Chat(model='demo', base_url=url, api_key=key)""",
    "litellm, ollama": "model, base = 'ollama_chat/demo', url",
    "litellm, openai": "model, base = 'openai/demo', url + '/v1'",
}
STREAM = {
    "langchain": "print(json.dumps([str(part.text) for part in chat.stream('Hello!')]))",
    "litellm": """
import litellm
parts = litellm.completion(model, ask, api_base=base, api_key=key, stream=True)
print(json.dumps([part.choices[0].delta.content or '' for part in parts]))""",
}
VALIDATED = """
from langchain_ollama import ChatOllama
ChatOllama(model='demo', base_url=url, validate_model_on_init=True)"""


@pytest.fixture(scope="module")
def python_said(folder: Path, shared_gate: Gate) -> dict[tuple[str, str], str]:
    """What each piece of code said with each key, by one process: most of its time goes to imports."""
    code = {name: BEGIN + text + "\n" + STREAM[re.split(r"\W", name)[0]] for name, text in PYTHON.items()}
    code |= {f"the example of {one.heading}": one.text for one in blocks(CLIENTS, "python") if of_them(one.text)}
    code["validate_model_on_init"] = BEGIN + VALIDATED
    for number, text in enumerate(code.values()):
        (folder / f"{number}.py").write_text(adapted(text, shared_gate))
    files = [str(folder / f"{number}.py") for number in range(len(code))]
    words = [f"key={KEY}", *files, f"key={WRONG}", *files]
    said = json.loads(output(installed.python(), installed.CLIENTS.parent / "snippets.py", *words))
    return dict(zip([(name, key) for key in (KEY, WRONG) for name in code], said, strict=True))


def of_them(code: str) -> bool:
    return "langchain" in code or "litellm" in code


def test_python(python_said: dict[tuple[str, str], str]) -> None:
    examples = {name: said for (name, key), said in python_said.items() if key == KEY and "example" in name}
    assert len(examples) == 2
    for name, said in examples.items():
        assert SAID in said, name
    for name in PYTHON:
        parts = json.loads(python_said[name, KEY].splitlines()[-1])
        assert SAID in "".join(parts), name
        assert len(parts) > 3, name


def test_python_with_a_wrong_key(python_said: dict[tuple[str, str], str]) -> None:
    assert "check your Ollama server logs" in python_said.pop(("validate_model_on_init", WRONG))
    for (name, key), said in python_said.items():
        assert key == KEY or REFUSED in said, name


# Agents.


@pytest.fixture(scope="module")
def agents() -> dict[str, list[str | Path]]:
    """How to run each: as it is on PATH, or as npm installs it."""
    if all(map(shutil.which, ("codex", "claude"))):
        return {"codex": ["codex"], "claude": ["claude"]}
    folder = installed.node_modules("agents")
    return {
        "codex": ["node", folder / "@openai" / "codex" / "bin" / "codex.js"],
        "claude": ["node", folder / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs"],
    }


def test_codex(agents: dict[str, list[str | Path]], gate: Gate, tmp_path: Path) -> None:
    """With the configuration of the page, it calls a tool and ends; with a wrong key, it says so."""
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").write_text(adapted(block(CLIENTS, "toml", "Codex"), gate))
    ask = [*agents["codex"], "exec", "--skip-git-repo-check", 'exec_command {"cmd": "echo tool-ran-here"}']
    home = {"HOME": str(tmp_path)}
    assert 'You said: "Chunk ID: ' in output(*ask, env=home, cwd=tmp_path), "of what ran"
    shown = output(*ask, env=home | {"OLLAMA_API_KEY": WRONG}, cwd=tmp_path, status=1)
    assert "Reconnecting... 1/5" in shown
    assert "unexpected status 401 Unauthorized: " in shown
    assert REFUSED in shown


def test_claude_code(agents: dict[str, list[str | Path]], gate: Gate, tmp_path: Path) -> None:
    """With the variables of the page, it calls a tool and ends; with a wrong key, or none, it says so."""
    *exports, program = adapted(block(CLIENTS, "sh", "anthropic and Claude Code"), gate).splitlines()
    question = 'Bash {"command": "echo tool-ran-here", "description": "x"}'
    claude = shlex.join(map(str, agents["claude"]))
    use = f"{program.replace('claude', claude, 1)} --allowedTools Bash -p {shlex.quote(question)}"
    ask = ["sh", "-c", "\n".join([*exports, use])]
    home = {"HOME": str(tmp_path), "IS_SANDBOX": "1"}
    assert 'You said: "tool-ran-here"' in output(*ask, env=home, cwd=tmp_path)
    shown = output(*ask, env=home | {"OLLAMA_API_KEY": WRONG}, cwd=tmp_path, status=1)
    assert "Failed to authenticate. API Error: 401 " in shown
    assert REFUSED in shown
    assert "Not logged in · Please run /login" in output(
        *ask, env=home | {"OLLAMA_API_KEY": ""}, cwd=tmp_path, status=1
    )
