"""The pages are true: each command is run or checked, links and names lead somewhere, the tables of README are those of
the code. What is in the other pages is in test_pages.py and test_troubleshooting.py."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ollama_auth import option_table
from ollama_auth.auth import keys_file
from scripts.tools import image, usage
from scripts.tools.keys.arguments import parse as parse_keys
from tests.harness.pages import CLIENTS, DEPLOYMENT, PAGES, README, TROUBLESHOOTING, anchors, block, commands
from tests.harness.pages import tests as all_tests
from tests.harness.support import KEY, ROOT, Gate, Upstream, ask, free_port
from tests.unit.tools.test_serve import served

TEXT = PAGES[README]
COMMANDS = commands(README)

# Where each command is run or checked.
CHECKED = {
    "git clone https://github.com/OWNER/ollama-auth && cd ollama-auth && scripts/serve": (
        "test_bootstrap.py::test_a_fresh_checkout_gets_an_environment_once"
    ),
    "OLLAMA_ENDPOINT=http://gpu-box:11434 scripts/serve --listen-port 9000": (
        "test_serve.py::test_the_address_follows_the_arguments_which_all_reach_mitmdump"
    ),
    "pip install 'mitmproxy>=12.2.2,<13'": "test_readme.py::test_the_version_of_mitmproxy",
    'export OLLAMA_API_KEY="sk-ollama-$(openssl rand -hex 16)"': "test_readme.py::test_the_making_of_a_key",
    'echo "sk-ollama-$(openssl rand -hex 16)"': "test_readme.py::test_the_making_of_a_key",
    "mitmdump --mode reverse:http://127.0.0.1:11434 --listen-port 8081 -s addons/auth.py": (
        "test_readme.py::test_mitmproxys_programs"
    ),
    "mitmweb --mode reverse:http://127.0.0.1:11434 --listen-port 8081 --web-port 8082 -s addons/auth.py": (
        "test_readme.py::test_mitmproxys_programs"
    ),
    "docker build -t ollama-auth .": "test_packaging.py::test_the_dockerfile_has_no_fault_that_hadolint_knows",
    "docker run --read-only -p 8081:8081 -e OLLAMA_API_KEY -e OLLAMA_ENDPOINT=http://host.docker.internal:11434 "
    "ollama-auth": "test_readme.py::test_docker_run",
    "scripts/doctor": "test_doctor.py::test_it_is_there_before_the_first_run",
    "scripts/keys add alice --scope infer --scope list --model llama3.2 --model 'qwen*' --expires 90d --rpm 60": (
        "test_readme.py::test_keys_for_everyone"
    ),
    "scripts/keys list": "test_readme.py::test_keys_for_everyone",
    "OLLAMA_KEYS_FILE=keys.toml scripts/serve": "test_readme.py::test_keys_for_everyone",
    "scripts/usage access.log": "test_usage_report.py::test_the_real_command",
    "scripts/usage --by day,key --since 2026-11-01 --format csv access.log access.log.1.gz": (
        "test_usage_report.py::test_several_files_compressed_ones_and_standard_input"
    ),
    "scripts/serve --workers 2": "test_workers.py::test_each_serves_and_each_denies",
    "scripts/bench": "test_readme.py::test_scripts_exist",
    "scripts/test": "test_readme.py::test_scripts_exist",
    "scripts/test tests/e2e/test_gate.py -k streaming": "test_readme.py::test_the_test_command",
    "scripts/bench --quick": "test_readme.py::test_scripts_exist",
    "scripts/refresh-pins": "test_readme.py::test_scripts_exist",
    # Of the other pages.
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
    "kubectl -n ollama set image deployment/ollama-auth gate=registry.example/ollama-auth:0.1.0": (
        "test_pages.py::test_kubectl"
    ),
    "kubectl -n ollama rollout status deployment/ollama-auth": "test_pages.py::test_kubectl",
}
RUN_AS_THEY_ARE = ("curl ", "printf ", ". ./.env.local; curl ", "docker run -d ")
"""By test_the_second_command, and test_pages.py."""


def test_no_command_is_unchecked() -> None:
    found = {line for page in (README, CLIENTS, DEPLOYMENT, TROUBLESHOOTING) for line in commands(page)}
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
    text = re.sub(r"ollama_auth_\w+|ollama_api/", "", PAGES[page])  # Metrics, modules.
    named = set(re.findall(r"\bollama_[a-z_]+", text)) - {"ollama_auth", "ollama_max_boddy", "ollama_limits_"}
    assert named <= {option.name for option in option_table.OPTIONS}


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences_can_be_given(page: str) -> None:
    """Those of scripts/: there is such a one, and what parses its arguments takes them."""
    parsers: dict[str, Callable[[list[str]], object]] = {"keys": parse_keys, "usage": usage.parse, "image": image.parse}
    for name, arguments in re.findall(r"(?<!`)`scripts/([\w-]+)( [^`]*)?`", PAGES[page]):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
        if name in parsers and arguments and "--help" not in arguments:
            parsers[name](shlex.split(arguments))


def test_the_second_command(tmp_path: Path) -> None:
    """From zero to a stream: `scripts/serve` in an empty folder, and the line that README has for it."""
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
            timeout=30,
        )
    assert b'"done":true' in done.stdout.splitlines()[-1]
    assert len(done.stdout.splitlines()) > 3


def test_the_python_lines(gate: Gate) -> None:
    code = block(README, "python", "Keys")
    code = code.replace("http://127.0.0.1:8081", gate.url)
    code = re.sub(r"^((ollama|openai|anthropic)\.\w+\(.*?\))", r"\2_client = \1", code, flags=re.M)
    code += "assert ollama_client.list().models\nassert openai_client.models.list().data\n"
    code += 'ask = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}\n'
    code += "assert anthropic_client.messages.create(**ask).content\n"
    subprocess.run([sys.executable, "-c", code], env={"OLLAMA_API_KEY": KEY}, check=True, timeout=30)


def test_the_making_of_a_key(upstream: Upstream) -> None:
    made = subprocess.run(["sh", "-c", 'echo "sk-ollama-$(openssl rand -hex 16)"'], capture_output=True, check=True)
    key = made.stdout.decode().strip()
    assert re.fullmatch("sk-ollama-[0-9a-f]{32}", key)
    with Gate(upstream.url, key=key) as gate:
        assert ask(gate.port, "GET", "/", f"Authorization: Bearer {key}").status == 200


@pytest.mark.parametrize("program", ["mitmdump", "mitmweb"])
def test_mitmproxys_programs(upstream: Upstream, program: str) -> None:
    """The arguments of the README, but for the ports and the endpoint."""
    (line,) = [command for command in COMMANDS if command.startswith(f"{program} ")]
    words = shlex.split(line)
    assert words[1:3] == ["--mode", "reverse:http://127.0.0.1:11434"]
    assert words[-2:] == ["-s", "addons/auth.py"]
    assert (ROOT / words[-1]).is_file()
    extra = ("--web-port", "0", "--set", "web_open_browser=false") if "--web-port" in words else ()
    with Gate(upstream.url, *extra, program=program, script=words[-1], cwd=ROOT) as gate:
        assert ask(gate.port, "GET", "/").status == 401


def test_keys_for_everyone(upstream: Upstream, tmp_path: Path) -> None:
    """The commands, and the file that is shown."""
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
                timeout=30,
            )
            made = made or done.stdout
    found = re.search(r"sk-ollama-[0-9a-f]+", made)
    assert found
    with Gate(upstream.url, env={"OLLAMA_KEYS_FILE": str(tmp_path / "keys.toml")}) as gate:
        assert ask(gate.port, "GET", "/api/tags", f"Authorization: Bearer {found[0]}").status == 200
        assert ask(gate.port, "POST", "/api/pull", f"Authorization: Bearer {found[0]}", body=b"{}").status == 403
    shown = block(README, "toml", "A key for everyone")
    assert [one.principal.name for one in keys_file.parse(shown.encode(), "README")] == ["alice", "reader"]


def test_the_version_of_mitmproxy() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert '"mitmproxy>=12.2.2,<13"' in pyproject


def test_docker_run() -> None:
    """No Docker here: what the command relies on is in the Dockerfile."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "EXPOSE 8081" in dockerfile
    assert "OLLAMA_ENDPOINT=http://host.docker.internal:11434" in dockerfile
    assert re.search(r"^USER \d+", dockerfile, re.M)


def test_the_test_command() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "tests/e2e/test_gate.py",
            "-k",
            "streaming or streams",
        ],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert b"streams" in done.stdout


def test_scripts_exist() -> None:
    for name in ("serve", "test", "bench", "refresh-pins", "doctor", "image", "keys", "usage"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111


def test_the_table_of_options_is_that_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(ollama_\w+)` \| (\S*) ?\|", TEXT, re.M))
    assert rows == {
        option.name: str(option.default) if isinstance(option.default, int | str) else ""
        for option in option_table.OPTIONS
    }


def test_the_lines_of_the_log_are_as_shown(gate: Gate) -> None:
    shown = re.findall(r"^2026-\S+ \S+ .*", TEXT, re.M)
    real = gate.find(ask(gate.port, "POST", "/api/chat").headers["x-request-id"])
    shape = re.compile(r"[0-9a-f]{16}|[0-9.:TZ-]{6,}|\d+(\.\d)?ms|\d+")
    assert shape.sub("?", real) == shape.sub("?", shown[1])
