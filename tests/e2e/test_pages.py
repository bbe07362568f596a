"""Run the examples of clients.md, deployment.md, replicas.md and security.md through a real gate."""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from ruamel.yaml import YAML

from ollama_auth import option_table
from ollama_auth.auth import weak_keys
from scripts.tools import image, serve
from tests.harness.base import KEY, ROOT, free_port
from tests.harness.deploy import OBJECTS, UNIT, container
from tests.harness.gate import Gate
from tests.harness.markdown import (
    CHANGES,
    CLIENTS,
    DEPLOYMENT,
    FENCED,
    LOGGING,
    PAGES,
    REPLICAS,
    block,
    blocks,
    commands,
    names,
    tables,
)
from tests.harness.programs import listens, proxy, run, tool
from tests.harness.serve import served
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

ADDRESS, MODEL = "127.0.0.1:8081", "llama3.2"
PATIENCE = 60.0
SLOW = pytest.mark.slow
WRONG = "sk-ollama-wrong-0123456789abcdef"
pytestmark = pytest.mark.timeout(3 * PATIENCE)
GATE_OPTIONS = {option.name: option for option in option_table.OPTIONS}


def adapted(text: str, gate: Gate) -> str:
    """The example with the address of `gate` and a model that it has."""
    return text.replace(ADDRESS, f"127.0.0.1:{gate.port}").replace(MODEL, "demo")


def output(
    *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | str = "/", succeeds: bool = True
) -> str:
    """Run a command, assert that it succeeds, and return its standard output; or that it fails, and all it said.

    Its environment has none of our variables except KEY and `env`.
    """
    foreign = ("OLLAMA_", "OPENAI_", "ANTHROPIC_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    variables = clean | {"OLLAMA_API_KEY": KEY, "LANGSMITH_TRACING": "false"} | dict(env or {})
    done = subprocess.run(
        command, env=variables, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode == 0) is succeeds, done.stdout + done.stderr
    return done.stdout if succeeds else done.stdout + done.stderr


failure = partial(output, succeeds=False)


def yaml(text: str) -> Any:
    return YAML(typ="safe").load(text)


# Clients.


@pytest.mark.parametrize("line", [line for line in commands(CLIENTS) if line.startswith(("curl ", "printf "))])
def test_curl(line: str, gate: Gate) -> None:
    said = output("sh", "-c", adapted(line, gate))
    assert '"done":true' in said.splitlines()[-1] or "demo:latest" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [one.text for one in blocks(CLIENTS, "python") if not re.match("LangC|litellm", one.heading)]
)
def test_python(code: str, gate: Gate) -> None:
    """Those of LangChain and litellm run in test_other_clients.py."""
    for name in re.findall(r"llama_index|pydantic_ai", code):
        if find_spec(name) is None:
            pytest.skip(f"no {name} in this environment")
    assert "your words came all the way" in output(sys.executable, "-c", adapted(code, gate))


TERMINAL = [line for line in commands(CLIENTS) if re.match(r"\S+ (aider|llm|oterm)\b", line)]


@pytest.mark.parametrize("line", TERMINAL)
def test_at_a_terminal(line: str, gate: Gate) -> None:
    """Run llm where it is installed; the others want a terminal, or the rest of the internet."""
    variable, program, *_ = shlex.split(line)
    assert variable.endswith(f"=http://{ADDRESS}")
    if program == "llm":
        tool("llm")
        assert "your words came all the way" in output("sh", "-c", adapted(line, gate))


def test_opencode() -> None:
    """The JSON is valid, and names the gate and the variable."""
    config = json.loads(block(CLIENTS, "json", "opencode"))
    assert config["provider"]["gate"]["options"] == {
        "baseURL": f"http://{ADDRESS}/v1",
        "apiKey": "{env:OLLAMA_API_KEY}",
    }
    assert config["model"].removeprefix("gate/") in config["provider"]["gate"]["models"]


def test_variables_of_openai(gate: Gate) -> None:
    lines = adapted(block(CLIENTS, "sh", "openai"), gate)
    code = "import openai; print(openai.OpenAI().models.list().data)"
    assert "demo:latest" in output("sh", "-c", f"{lines}exec {sys.executable} -c {shlex.quote(code)}")


@pytest.mark.slow
def test_variables_of_claude_code(gate: Gate) -> None:
    """Use its library, which reads the same variables, and assert that the user's real key is not sent."""
    *exports, program = adapted(block(CLIENTS, "sh", "anthropic and Claude Code"), gate).splitlines()
    assert program == "claude --model demo"
    code = 'import anthropic; ask = [{"role": "user", "content": "x"}]; '
    code += 'print(anthropic.Anthropic().messages.create(model="demo", max_tokens=9, messages=ask))'
    lines = "\n".join([*exports, f"exec {sys.executable} -c {shlex.quote(code)}"])
    assert "TextBlock" in output("sh", "-c", lines, env={"ANTHROPIC_API_KEY": "sk-ant-real"})


def test_the_stock_cli(upstream: Upstream, tmp_path: Path) -> None:
    """Make and add a key pair as the page says, and send a signed request; the program itself is not needed."""
    tool("ssh-keygen")
    home = {"HOME": str(tmp_path)}
    (use,) = [line for line in commands(CLIENTS) if "ollama run" in line]
    assert shlex.split(use)[:2] == [f"OLLAMA_HOST=http://{ADDRESS}", "OLLAMA_AUTH=1"]
    (make,) = [line for line in commands(CLIENTS) if "ssh-keygen" in line]
    (add,) = [line for line in commands(CLIENTS) if line.startswith("scripts/keys add")]
    output("sh", "-c", make, env=home)
    output(
        "sh", "-c", add.replace("scripts/keys", f"{sys.executable} {ROOT}/scripts/tools keys"), env=home, cwd=tmp_path
    )
    private = load_ssh_private_key((tmp_path / ".ollama" / "id_ed25519").read_bytes(), None)
    assert isinstance(private, Ed25519PrivateKey)
    public = (tmp_path / ".ollama" / "id_ed25519.pub").read_text().split()[1]
    target = f"/api/tags?ts={int(time.time())}"
    signature = base64.b64encode(private.sign(f"GET,{target}".encode())).decode()
    with Gate(upstream.url, key=None, env={"OLLAMA_KEYS_FILE": str(tmp_path / "keys.toml")}) as gate:
        assert ask(gate.port, "GET", target, f"Authorization: {public}:{signature}").status == 200


def test_open_webui(gate: Gate) -> None:
    """Send what Open WebUI sends by its source: the key of OLLAMA_API_CONFIGS, or OPENAI_API_KEY, as Bearer."""
    (service,) = yaml(block(CLIENTS, "yaml", "Open WebUI"))["services"].values()
    given = {name: value.replace("${OLLAMA_API_KEY}", KEY) for name, value in service["environment"].items()}
    assert given["OLLAMA_BASE_URL"] == "http://gate:8081"
    assert given["OPENAI_API_BASE_URL"] == "http://gate:8081/v1"
    for path, key in (
        ("/api/tags", json.loads(given["OLLAMA_API_CONFIGS"])["0"]["key"]),
        ("/v1/models", given["OPENAI_API_KEY"]),
    ):
        assert ask(gate.port, "GET", path, f"Authorization: Bearer {key}").status == 200


def test_continue() -> None:
    """Continue calls `new URL("api/chat", apiBase)`, so apiBase must not have a path. It sends apiKey as Bearer."""
    config = yaml(block(CLIENTS, "yaml", "Continue"))
    assert {"name", "version", "schema"} <= config.keys()
    (model,) = config["models"]
    assert (model["provider"], model["apiBase"]) == ("ollama", f"http://{ADDRESS}")
    assert model["apiKey"] == "${{ secrets.OLLAMA_API_KEY }}"


def test_browsers(upstream: Upstream) -> None:
    (line,) = block(CLIENTS, "sh", "Browsers").splitlines()
    with Gate(upstream.url, *shlex.split(line)[1:]) as gate:
        asks = ("Origin: https://chat.example", "Access-Control-Request-Method: POST")
        assert ask(gate.port, "OPTIONS", "/api/chat", *asks).status == 204


# Deployment.


def test_docker_run() -> None:
    """Check what the command relies on without Docker, and that the stop timeout exceeds the grace period."""
    (line,) = [line for line in commands(DEPLOYMENT) if line.startswith("docker run")]
    words = shlex.split(line)
    name = words.index("localhost/ollama-auth")
    assert image.parse([]).tag == "localhost/ollama-auth:latest"
    assert words[name + 1 : name + 2] == ["--set"]
    option, _, value = words[name + 2].partition("=")
    assert option in GATE_OPTIONS
    assert int(words[words.index("--stop-timeout") + 1]) > int(value)
    mounts = words[words.index("-v") + 1].split(":")
    assert f"OLLAMA_API_KEY_FILE={mounts[1]}" in words


def test_kubectl() -> None:
    named = {(one["kind"], one["metadata"]["name"], one["metadata"].get("namespace")) for one in OBJECTS}
    assert ("Deployment", "ollama-auth", "ollama") in named
    assert container("ollama-auth")["name"] == "gate"
    (line,) = [line for line in commands(DEPLOYMENT) if "set image" in line]
    assert line.endswith(f"gate={container('ollama-auth')['image']}")


def test_prometheus_asks_where_serve_puts_it() -> None:
    (job,) = yaml(block(DEPLOYMENT, "yaml", "Metrics"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["{}:{}".format(*serve.STATUS_ADDRESS)]}]


def test_alerts_ask_for_what_there_is(upstream: Upstream) -> None:
    watch = free_port()
    alerts = block(DEPLOYMENT, "promql", "Metrics")
    with Gate(upstream.url, "--set", f"ollama_metrics_listen=127.0.0.1:{watch}"):
        there = ask(watch, "GET", "/metrics", "Host: localhost").body.decode()
    for name in re.findall(r"ollama_auth_\w+", alerts):
        assert f"# TYPE {name.removesuffix('_bucket')} " in there
    refusals, _ = tables(LOGGING, "Reasons")
    for reasons in re.findall(r'reason=~"([^"]+)"', alerts):
        assert set(reasons.split("|")) <= set(names(refusals))


def test_logrotate(tmp_path: Path) -> None:
    """The rules reload the gate in a way that the unit supports. test_access_log.py tests the reopening of the file."""
    rules = block(DEPLOYMENT, "text", "Logs")
    assert "systemctl reload ollama-auth" in rules
    assert re.search(r"^ExecReload=.*-HUP \$MAINPID", UNIT.read_text(), re.MULTILINE)
    (path,) = re.findall(r"^(/\S+) \{$", rules, re.MULTILINE)
    assert f"ollama_access_log={path}" in PAGES[DEPLOYMENT]
    (tmp_path / "rules").write_text(rules)
    if program := shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin"):
        run(program, "--debug", "--state", str(tmp_path / "state"), str(tmp_path / "rules"))


@pytest.mark.slow
def test_from_a_caddyfile(upstream: Upstream, tmp_path: Path) -> None:
    """The same environment and clients work, first with Caddy and then with the gate."""
    port = free_port()
    (tmp_path / "Caddyfile").write_text(
        "{\n\tadmin off\n}\n" + block(DEPLOYMENT, "caddyfile", "Coming from a Caddyfile").replace(":8081", f":{port}")
    )
    given = {"OLLAMA_API_KEY": KEY, "OLLAMA_ENDPOINT": f"127.0.0.1:{upstream.port}", "HOME": str(tmp_path)}
    caddy = ["env", *(f"{name}={value}" for name, value in given.items()), tool("caddy"), "run"]
    with proxy([*caddy, "--adapter", "caddyfile", "--config", "Caddyfile"], port, tmp_path):
        assert seen(port) == (401, 200)
    with served(tmp_path, "-p", str(port), OLLAMA_METRICS_LISTEN="", **given):
        assert listens(port)
        assert seen(port) == (401, 200)


def seen(port: int) -> tuple[int, int]:
    """Status of a request without the key, and of one with it."""
    return ask(port, "GET", "/api/tags").status, ask(port, "GET", "/api/tags", f"Authorization: Bearer {KEY}").status


def test_compose_files_before_and_after(tmp_path: Path) -> None:
    before, after = [block.text for block in blocks(DEPLOYMENT, "yaml") if block.heading == "Coming from a Caddyfile"]
    for text in (before, after):
        (tmp_path / "compose.yaml").write_text(text)
        run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml")
    old, new = (yaml(text)["services"]["ollama-auth"] for text in (before, after))
    assert {name for name in old if old[name] != new.get(name)} == {"image", "volumes"}
    assert int(new["stop_grace_period"].removesuffix("s")) > GATE_OPTIONS["ollama_grace_period"].default


def test_the_version_is_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in (ROOT / "Dockerfile").read_text()
    assert container("ollama-auth")["image"].endswith(f":{version}")
    assert f"\n## {version}" in PAGES[CHANGES]
    named = re.findall(r"ollama-auth[: ](\d+\.\d+\.\d+)|tag -a v(\d+\.\d+\.\d+)", PAGES[DEPLOYMENT])
    assert {one or other for one, other in named} == {version}


def test_commands_of_a_release(tmp_path: Path) -> None:
    for line in commands(DEPLOYMENT):
        if line.startswith("scripts/image"):
            image.parse(shlex.split(line)[1:])
    (tag,) = [line for line in commands(DEPLOYMENT) if line.startswith("git tag")]
    env = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@a", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@a"}
    output("git", "init", "-q", tmp_path)
    output("git", "-C", tmp_path, "commit", "-q", "--allow-empty", "-m", "a", env=env)
    output(*shlex.split(tag), env=env, cwd=tmp_path)
    assert output("git", "tag", cwd=tmp_path) == "v0.1.0\n"


# Replicas, and tools.


def test_arguments_of_replicas(upstream: Upstream) -> None:
    """A gate accepts all arguments. It does not need Redis while no key has limits."""
    watch = free_port()
    arguments = block(REPLICAS, "text", "Start the gates").replace("127.0.0.1:9464", f"127.0.0.1:{watch}")
    with Gate(upstream.url, *shlex.split(arguments.replace("HOST:6379", f"127.0.0.1:{free_port()}"))) as gate:
        assert ask(gate.port, "GET", "/api/tags", f"Authorization: Bearer {KEY}").status == 200
        assert ask(watch, "GET", "/readyz", "Host: localhost").status == 200


TOOLS = [line for page in PAGES for line in commands(page) if line.startswith("PYTHONPATH=")]


@pytest.mark.parametrize("line", TOOLS)
def test_tools_of_the_tests(line: str) -> None:
    """The tools start as the pages say, and know the arguments. A full run takes minutes, so only show the help."""
    path, python, *words = shlex.split(line)
    assert python == ".venv/bin/python"
    said = output(sys.executable, *words, "--help", env=dict([path.split("=")]), cwd=ROOT)
    assert all(word in said for word in words if word.startswith("--"))


COMMON = set(
    re.findall(
        r"\S+",
        """
    123456 12345678 123456789 password password1 qwerty abc123 letmein welcome admin administrator root user guest
    test test123 testing changeme change-me secret secret123 default example hello hello123 key api-key apikey
    api_key your-key your-api-key your_api_key my-key mykey my-secret-key token mytoken bearer ollama ollama123
    ollama-key sk-ollama sk-123 sk-1234 sk-test sk-xxx sk-proj none null true false demo dummy foo bar foobar
    placeholder x xxx
""",
    )
)
GUESSES = {"", "\n", *COMMON, *(word for page in PAGES.values() for word in re.findall(r"[\w.+-]+", page))}


def test_each_row_of_a_table_is_one_line_with_all_its_cells() -> None:
    for name, page in PAGES.items():
        for lines in re.findall(r"(?:^\|.*\n?)+", FENCED.sub("", page), re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) if line.endswith("|") else 0 for line in lines.splitlines()}
            assert len(widths) == 1, (name, lines)
            assert 0 not in widths, (name, lines)


@pytest.mark.parametrize(
    "path", [*PAGES, *(str(path.relative_to(ROOT)) for path in (ROOT / "scripts/deploy").rglob("*.*[!g]"))]
)
def test_no_example_admits_a_word_that_can_be_guessed(path: str) -> None:
    """Users copy examples and forget to change them, so no digest in an example may be that of a common word."""
    digests = {sha256(f"{guess}{end}".encode()).hexdigest() for guess in GUESSES for end in ("", "\n")}
    text = (ROOT / path).read_text()
    assert set(re.findall(r"\b[0-9a-f]{64}\b", text)).isdisjoint(digests)
    keys = re.findall(r"""API_KEY["']?[ \t]*[:=][ \t]*["']?([\w-]+)""", text)
    assert [key for key in keys if key.lower() in COMMON] == []


@pytest.mark.parametrize(
    "name", [*PAGES, *(path.name for path in (ROOT / "scripts" / "deploy").iterdir() if path.is_file())]
)
def test_no_example_admits_a_word_that_others_guess(name: str) -> None:
    text = PAGES[name] if name in PAGES else (ROOT / "scripts" / "deploy" / name).read_text()
    digests = re.findall(r"\b[0-9a-f]{32,64}\b", text)
    keys = re.findall(r"OLLAMA_API_KEY=[\"']?([^\s\"'`]+)", text)
    assert not [one for one in digests if weak_keys.hash_of_common(one)]
    assert all(key.startswith(("sk-ollama-$(", "$", "…")) for key in keys), keys
