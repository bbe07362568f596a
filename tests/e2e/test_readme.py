"""Check README, and for all pages that commands are tested, links resolve, names exist, and tables match the code.

test_pages.py and test_troubleshooting.py check what the other pages say.
"""

import inspect
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from mitmproxy.proxy.mode_specs import ProxyMode

from ollama_auth import option_table, process
from ollama_auth.auth import key_fields, keys_file
from ollama_auth.auth.keys import Scope
from ollama_auth.ollama_api.routes import RouteClass
from ollama_auth.settings import SettingsError
from ollama_auth.telemetry import access_log
from ollama_auth.telemetry.metrics import Metrics
from scripts.tools import checks, image
from scripts.tools.keys.arguments import parse as parse_keys
from scripts.tools.usage.arguments import parse as parse_usage
from tests.harness.base import KEY, ROOT, free_port, wait_until
from tests.harness.gate import Gate
from tests.harness.markdown import (
    KEYS,
    LOGGING,
    OPTIONS,
    PAGES,
    README,
    anchors,
    block,
    blocks,
    commands,
    names,
    tables,
)
from tests.harness.markdown import tests as all_tests
from tests.harness.serve import served
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

COMMANDS = commands(README)

# The test that runs or checks each command of a page.
CHECKED = {
    "scripts/serve": "test_bootstrap.py::test_a_fresh_checkout_gets_an_environment_once",
    "OLLAMA_ENDPOINT=http://gpu-box:11434 scripts/serve --listen-port 9000": (
        "test_serve.py::test_the_address_follows_the_arguments_which_all_reach_mitmdump"
    ),
    "pip install 'mitmproxy>=12.2.2,<12.4'": "test_readme.py::test_the_version_of_mitmproxy",
    'export OLLAMA_API_KEY="sk-ollama-$(openssl rand -hex 16)"': "test_readme.py::test_the_making_of_a_key",
    'echo "sk-ollama-$(openssl rand -hex 16)"': "test_readme.py::test_the_making_of_a_key",
    "export OLLAMA_ENDPOINT=http://127.0.0.1:11434": "test_readme.py::test_mitmproxy_alone",
    "mitmdump --mode reverse:$OLLAMA_ENDPOINT -s addons/auth.py": "test_readme.py::test_mitmproxy_alone",
    "mitmweb --mode reverse:http://127.0.0.1:11434 --listen-port 8081 -s addons/auth.py": (
        "test_readme.py::test_mitmweb"
    ),
    "pip install '.[all]'": "test_wheel.py::test_what_it_says_of_itself",
    "ollama-auth": "test_wheel.py::test_one_line_starts_a_guarded_chat",
    'mitmdump --mode reverse:http://127.0.0.1:11434 -s "$(ollama-auth addon)"': (
        "test_wheel.py::test_its_addon_guards_and_each_other_file_refuses"
    ),
    "docker build -t localhost/ollama-auth .": (
        "test_packaging.py::test_the_dockerfile_has_no_fault_that_hadolint_knows"
    ),
    "docker run --read-only -p 8081:8081 -e OLLAMA_API_KEY -e OLLAMA_ENDPOINT=http://host.docker.internal:11434 "
    "localhost/ollama-auth": "test_readme.py::test_docker_run",
    "scripts/keys add alice --scope infer --scope list --model llama3.2 --model 'qwen*' --expires 90d --rpm 60": (
        "test_readme.py::test_keys_for_everyone"
    ),
    "scripts/keys list": "test_readme.py::test_keys_for_everyone",
    "OLLAMA_KEYS_FILE=keys.toml scripts/serve": "test_readme.py::test_keys_for_everyone",
    "scripts/usage --by month,key": "test_usage_report.py::test_the_commands_of_the_page",
    "scripts/usage --by day,key --since 2026-11-01 --timezone Europe/Berlin --format csv": (
        "test_usage_report.py::test_the_commands_of_the_page"
    ),
    "scripts/usage --by outcome,reason --key alice access.log access.log.1.gz": (
        "test_usage_report.py::test_the_commands_of_the_page"
    ),
    "scripts/serve --workers 2": "test_workers.py::test_each_serves_and_each_denies",
    "scripts/bench": "test_readme.py::test_scripts_exist",
    "scripts/test": "test_readme.py::test_the_test_command",
    "scripts/test --all": "test_readme.py::test_the_test_command",
    "scripts/bench --quick": "test_readme.py::test_scripts_exist",
    "scripts/refresh-pins": "test_readme.py::test_scripts_exist",
    "scripts/set-repository OWNER/NAME": "test_packaging.py::test_the_address_of_the_repository_is_set_by_one_command",
    # Commands of the other pages.
    "mkdir -p ~/.ollama && ssh-keygen -t ed25519 -N '' -f ~/.ollama/id_ed25519": "test_pages.py::test_the_stock_cli",
    "scripts/keys add my-laptop --ssh ~/.ollama/id_ed25519.pub --scope all": "test_pages.py::test_the_stock_cli",
    "OLLAMA_HOST=http://127.0.0.1:8081 OLLAMA_AUTH=1 ollama run llama3.2": "test_pages.py::test_the_stock_cli",
    "export OPENAI_BASE_URL=http://127.0.0.1:8081/v1": "test_pages.py::test_variables_of_openai",
    'export OPENAI_API_KEY="$OLLAMA_API_KEY"': "test_pages.py::test_variables_of_openai",
    "export ANTHROPIC_BASE_URL=http://127.0.0.1:8081": "test_pages.py::test_variables_of_claude_code",
    'export ANTHROPIC_AUTH_TOKEN="$OLLAMA_API_KEY"': "test_pages.py::test_variables_of_claude_code",
    "export ANTHROPIC_API_KEY=": "test_pages.py::test_variables_of_claude_code",
    "claude --model llama3.2": "test_pages.py::test_variables_of_claude_code",
    "scripts/serve --set ollama_cors_origins=https://chat.example": "test_pages.py::test_browsers",
    "scripts/image": "test_image.py::test_what_it_is_stands_in_its_labels",
    "scripts/image --wheels": "test_pages.py::test_commands_of_a_release",
    "scripts/image --check --tag localhost/ollama-auth:0.1.0": "test_pages.py::test_commands_of_a_release",
    'git tag -a v0.1.0 -m "ollama-auth 0.1.0"': "test_pages.py::test_commands_of_a_release",
    "kubectl -n ollama set image deployment/ollama-auth gate=ghcr.io/OWNER/ollama-auth:0.1.0": (
        "test_pages.py::test_kubectl"
    ),
    "PYTHONPATH=addons:. .venv/bin/python -m tests.tools.replicas --streams 300 --seconds 60": (
        "test_pages.py::test_tools_of_the_tests"
    ),
    "PYTHONPATH=addons:. .venv/bin/python -m tests.tools.costs": "test_pages.py::test_tools_of_the_tests",
    "PYTHONPATH=addons:. .venv/bin/python -m tests.tools.floods": "test_pages.py::test_tools_of_the_tests",
    "PYTHONPATH=addons:. .venv/bin/python -m tests.tools.fuzz": "test_pages.py::test_tools_of_the_tests",
    "PYTHONPATH=addons:. .venv/bin/python -m tests.tools.fuzz_responses": "test_pages.py::test_tools_of_the_tests",
    "PYTHONPATH=addons:. .venv/bin/python -m tests.tools.soak --seconds 600 --tls": (
        "test_pages.py::test_tools_of_the_tests"
    ),
    "kubectl -n ollama rollout status deployment/ollama-auth": "test_pages.py::test_kubectl",
    "OLLAMA_API_BASE=http://127.0.0.1:8081 aider --model ollama_chat/llama3.2": "test_pages.py::test_at_a_terminal",
    'OLLAMA_HOST=http://127.0.0.1:8081 llm -m ollama/llama3.2 "Hello!"': "test_pages.py::test_at_a_terminal",
    "OLLAMA_URL=http://127.0.0.1:8081 oterm": "test_pages.py::test_at_a_terminal",
}
RUN_AS_THEY_ARE = ("curl ", "printf ", ". ./.env.local; curl ", "docker run -d ")
"""Beginnings of commands that test_the_second_command and test_pages.py run as they stand."""


def test_the_readme_is_short() -> None:
    assert len(PAGES[README].splitlines()) <= 180


def test_the_readme_lists_every_page() -> None:
    listed = re.findall(r"\]\(((?:scripts/docs|\.github)/[^)#]+\.md)\)", str(tables(README, "Documentation")))
    assert sorted(listed) == sorted(PAGES.keys() - {README})


def test_no_command_is_unchecked() -> None:
    found = {line for page in PAGES for line in commands(page)}
    assert {line for line in found if not line.startswith(RUN_AS_THEY_ARE)} == set(CHECKED)


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page: str) -> None:
    named = {*re.findall(r"test_\w+\.py::test_\w+", PAGES[page]), *(CHECKED.values() if page == README else ())}
    assert named <= all_tests()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for place, _, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#([^)\s]+))?\)", PAGES[page]):
        target = (ROOT / page).parent / place if place else ROOT / page
        name = os.path.relpath(target, ROOT)
        assert target.exists(), f"{page}: {place}"
        assert not anchor or anchor in anchors(name), f"{page}: {place}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = set(re.findall(r"`((?:scripts|addons|tests)/[\w./-]+)`", PAGES[page]))
    assert all((ROOT / name).exists() for name in named), named
    modules = set(re.findall(r"`([\w/]+\.(?:py|html))`", PAGES[page])) - {"auth.py"}
    modules = {name for name in modules if not name.startswith(("addons/", "scripts/", "tests/"))}
    assert all((ROOT / "addons" / "ollama_auth" / name).exists() for name in modules), modules


@pytest.mark.parametrize("page", PAGES)
def test_options_that_are_named_exist(page: str) -> None:
    text = re.sub(r"ollama_auth_\w+|ollama_(api|chat)/", "", PAGES[page])  # Metrics, modules, litellm.
    named = set(re.findall(r"\bollama_[a-z_]+", text)) - {
        "ollama_auth",
        "ollama_max_boddy",
        "ollama_limits_",
        "ollama_reserve",
    }
    assert named <= {option.name for option in option_table.OPTIONS}


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences_can_be_given(page: str) -> None:
    """Each names a file in scripts/, and its argument parser accepts the arguments."""
    parsers: dict[str, Callable[[list[str]], object]] = {"keys": parse_keys, "usage": parse_usage, "image": image.parse}
    for name, arguments in re.findall(r"(?<!`)`scripts/([\w-]+)( [^`]*)?`", PAGES[page]):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
        if name in parsers and arguments and "--help" not in arguments:
            parsers[name](shlex.split(arguments))


@pytest.mark.slow
def test_the_second_command(tmp_path: Path) -> None:
    """Run `scripts/serve` in an empty folder, and then the `curl` command of README."""
    (line,) = [command for command in COMMANDS if command.startswith(". ./.env.local; curl ")]
    port = free_port()
    with served(tmp_path, "--demo", "-p", str(port), OLLAMA_METRICS_LISTEN=""):
        line = line.replace("127.0.0.1:8081", f"127.0.0.1:{port}").replace("llama3.2", "demo")
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            check=True,
            timeout=90,
        )
    assert b'"done":true' in done.stdout.splitlines()[-1]
    assert len(done.stdout.splitlines()) > 3


@pytest.mark.slow
@pytest.mark.timeout(180)  # Three libraries to import, perhaps on a busy machine.
def test_the_python_lines(gate: Gate) -> None:
    code = block(README, "python", "Connect a client")
    code = code.replace("http://127.0.0.1:8081", gate.url)
    code = re.sub(r"^((ollama|openai|anthropic)\.\w+\(.*?\))", r"\2_client = \1", code, flags=re.M)
    code += "assert ollama_client.list().models\nassert openai_client.models.list().data\n"
    code += 'ask = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}\n'
    code += "assert anthropic_client.messages.create(**ask).content\n"
    subprocess.run([sys.executable, "-c", code], env={"OLLAMA_API_KEY": KEY}, check=True, timeout=150)


def test_the_making_of_a_key(upstream: Upstream) -> None:
    made = subprocess.run(["sh", "-c", 'echo "sk-ollama-$(openssl rand -hex 16)"'], capture_output=True, check=True)
    key = made.stdout.decode().strip()
    assert re.fullmatch("sk-ollama-[0-9a-f]{32}", key)
    with Gate(upstream.url, key=key) as gate:
        assert ask(gate.port, "GET", "/", f"Authorization: Bearer {key}").status == 200


def listens(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.slow
def test_mitmproxy_alone(upstream: Upstream, tmp_path: Path) -> None:
    """Run the `mitmdump` line of README as it stands, with the variables that README exports before it."""
    (shown,) = [block.text for block in blocks(README, "sh") if "mitmdump" in block.text and "export" in block.text]
    *before, line = shown.splitlines()
    assert [words.partition("=")[0] for words in before[1:]] == ["export OLLAMA_ENDPOINT", "export OLLAMA_API_KEY"]
    assert line == "mitmdump --mode reverse:$OLLAMA_ENDPOINT -s addons/auth.py"
    assert ProxyMode.parse("reverse:http://127.0.0.1").default_port == 8080
    port = free_port()
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "OLLAMA_ENDPOINT": upstream.url,
        "OLLAMA_API_KEY": KEY,
    }
    with subprocess.Popen(["sh", "-c", f"exec {line} --listen-port {port}"], cwd=ROOT, env=env) as process:
        try:
            wait_until(lambda: listens(port), "the gate to listen", 30)
            assert ask(port, "GET", "/").status == 401
            assert ask(port, "GET", "/", f"Authorization: Bearer {KEY}").status == 200
        finally:
            process.terminate()


def test_mitmweb(upstream: Upstream) -> None:
    """Run the `mitmweb` line of README with another endpoint and other ports."""
    (line,) = [command for command in COMMANDS if command.startswith("mitmweb ")]
    words = shlex.split(line)
    assert words[1:3] == ["--mode", "reverse:http://127.0.0.1:11434"]
    assert words[-2:] == ["-s", "addons/auth.py"]
    assert (ROOT / words[-1]).is_file()
    assert words[3:5] == ["--listen-port", "8081"]
    extra = ("--web-port", "0", "--set", "web_open_browser=false")

    with Gate(upstream.url, *extra, program="mitmweb", script=words[-1], cwd=ROOT) as gate:
        assert ask(gate.port, "GET", "/").status == 401


@pytest.mark.slow
def test_keys_for_everyone(upstream: Upstream, tmp_path: Path) -> None:
    """Run the `scripts/keys` commands of README, use the key that they make, and read the example of a keys file."""
    made = ""
    for command in COMMANDS:
        if command.startswith("scripts/keys "):
            words = shlex.split(command)[1:]
            done = subprocess.run(
                [sys.executable, str(ROOT / "scripts" / "tools"), "keys", *words],
                cwd=tmp_path,
                env={"PATH": "/usr/bin:/bin"},
                capture_output=True,
                text=True,
                check=True,
                timeout=90,
            )
            made = made or done.stdout
    found = re.search(r"sk-ollama-[0-9a-f]+", made)
    assert found
    with Gate(upstream.url, env={"OLLAMA_KEYS_FILE": str(tmp_path / "keys.toml")}) as gate:
        assert ask(gate.port, "GET", "/api/tags", f"Authorization: Bearer {found[0]}").status == 200
        assert ask(gate.port, "POST", "/api/pull", f"Authorization: Bearer {found[0]}", body=b"{}").status == 403
    shown = block(KEYS, "toml", "The keys file")
    assert [one.principal.name for one in keys_file.parse(shown.encode(), KEYS)] == ["alice", "reader"]


def test_fields_and_scopes_of_keys() -> None:
    _, fields = tables(KEYS, "The keys file")
    assert names(fields) == list(key_fields.FIELDS)
    (scopes,) = tables(KEYS, "Scopes")
    assert sorted(names(scopes)) == sorted(Scope)


def test_the_version_of_mitmproxy() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert '"mitmproxy>=12.2.2,<12.4"' in pyproject
    for unknown in ("12.2.1", "12.4.0", "13.0.0"):
        with pytest.raises(SettingsError, match=r": pip install 'mitmproxy>=12\.2\.2,<12\.4' with"):
            process.check_version(unknown)
    for known in ("12.2.2", "12.3.1"):
        process.check_version(known)


def test_docker_run() -> None:
    """Check in the Dockerfile what the command relies on; Docker may not be installed."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "EXPOSE 8081" in dockerfile
    assert "OLLAMA_ENDPOINT=http://host.docker.internal:11434" in dockerfile
    assert re.search(r"^USER \d+", dockerfile, re.M)


def test_the_test_command() -> None:
    """Without arguments it leaves out the slow tests, and only those; what is given is given to pytest."""
    some, every = checks.plan([]), checks.plan([checks.ALL])
    assert len(some) == len(every)
    assert sum("not slow" in " ".join(part.command) for part in some) == 3
    assert not any("slow" in " ".join(part.command) for part in every)
    assert sum(part.seconds for part in some) < 240
    assert checks.plan(["-k", "streams"])[-1].command[-2:] == ("-k", "streams")


def test_scripts_exist() -> None:
    for name in ("serve", "test", "bench", "refresh-pins", "doctor", "image", "keys", "usage"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111


def test_the_tables_of_options_are_those_of_the_code() -> None:
    table = re.findall(r"^\| `(ollama_\w+)` \| (\S*) ?\|", PAGES[OPTIONS], re.M)
    assert len(table) == len(dict(table))
    assert dict(table) == {
        option.name: json.dumps(option.default).strip('"') if isinstance(option.default, int | str) else ""
        for option in option_table.OPTIONS
    }


def test_environment_variables_of_options() -> None:
    (table,) = tables(OPTIONS, "Environment variables")
    said = {found for option in option_table.OPTIONS for found in re.findall(r"\bOLLAMA_[A-Z_]+", option.help)}
    assert set(names(table[:-1])) == said
    assert names(table[-1:]) == ["OLLAMA_ENDPOINT"]


def test_classes_of_requests() -> None:
    (sentence,) = re.findall(r"^The classes of `ollama_max_body` are (.*?)\.\n", PAGES[OPTIONS], re.M | re.S)
    assert re.findall(r"`(\w+)`", sentence) == [*RouteClass, "all"]


def test_the_lines_of_the_log_are_as_shown(gate: Gate) -> None:
    shown = re.findall(r"^2026-\S+ \S+ .*", PAGES[LOGGING], re.M)
    real = gate.find(ask(gate.port, "POST", "/api/chat").headers["x-request-id"])
    shape = re.compile(r"[0-9a-f]{16}|[0-9.:TZ-]{6,}|\d+(\.\d)?ms|\d+")
    assert shape.sub("?", real) == shape.sub("?", shown[1])


def test_fields_of_the_log_are_those_of_the_code() -> None:
    (table,) = tables(LOGGING, "Access log")
    assert sorted(names(table)) == sorted(re.findall(r'"(\w+)": ', inspect.getsource(access_log)))


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    (table,) = tables(LOGGING, "Metrics")
    text = Metrics().render()[0].decode()
    assert sorted(names([row[:1] for row in table])) == sorted(re.findall(r"^# TYPE (\w+) ", text, re.M))
