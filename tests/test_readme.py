"""The README is true: each command in it is run or checked here, and its tables are those of the code."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ollama_auth import keys_file, settings
from support import KEY, ROOT, Gate, Upstream, ask

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
BIN = Path(sys.executable).parent

# Where each command is run or checked.
CHECKED = {
    "git clone https://github.com/OWNER/ollama-auth && cd ollama-auth": "test_bootstrap.py clones",
    "scripts/serve": "test_bootstrap.py",
    "OLLAMA_ENDPOINT=http://gpu-box:11434 scripts/serve --listen-port 9000": "test_serve.py",
    "pip install 'mitmproxy>=12.2.2,<13'": "test_the_version_of_mitmproxy",
    'export OLLAMA_API_KEY="sk-ollama-$(openssl rand -hex 16)"': "test_the_making_of_a_key",
    'echo "sk-ollama-$(openssl rand -hex 16)"': "test_the_making_of_a_key",
    "mitmdump --mode reverse:http://127.0.0.1:11434 --listen-port 8081 -s addons/auth.py": "test_mitmproxys_programs",
    "mitmweb --mode reverse:http://127.0.0.1:11434 --listen-port 8081 --web-port 8082 -s addons/auth.py": (
        "test_mitmproxys_programs"
    ),
    "docker build -t ollama-auth .": "test_packaging.py lints the Dockerfile",
    "docker run --read-only -p 8081:8081 -e OLLAMA_API_KEY -e OLLAMA_ENDPOINT=http://host.docker.internal:11434 "
    "ollama-auth": "test_docker_run",
    "scripts/keys add alice --scope infer --scope list --model llama3.2 --model 'qwen*' --expires 90d --rpm 60": (
        "test_keys_for_everyone"
    ),
    "scripts/keys list": "test_keys_for_everyone",
    "OLLAMA_KEYS_FILE=keys.toml scripts/serve": "test_keys_for_everyone",
    "scripts/keys add my-laptop --ssh ~/.ollama/id_ed25519.pub --scope all": "test_keys_for_everyone",
    "OLLAMA_HOST=http://127.0.0.1:8081 OLLAMA_AUTH=1 ollama run llama3.2": "test_named_keys.py signs as it does",
    "scripts/usage access.log": "test_usage_report.py",
    "scripts/usage --by day,key --since 2026-11-01 --format csv access.log access.log.1.gz": "test_usage_report.py",
    "scripts/test": "this is it",
    "scripts/test tests/test_gate.py -k streaming": "test_the_test_command",
    "scripts/bench": "test_bench.py",
    "scripts/bench --quick": "test_scripts_exist",
    "scripts/refresh-pins": "test_scripts_exist",
}


def test_no_command_is_unchecked() -> None:
    commands = [command for command in COMMANDS if not command.startswith("curl ")]
    assert set(commands) == set(CHECKED)


def test_the_curl_line(gate: Gate) -> None:
    (line,) = [command for command in COMMANDS if command.startswith("curl ")]
    command = line.replace("http://127.0.0.1:8081", gate.url)
    done = subprocess.run(
        ["sh", "-c", command], env={"OLLAMA_API_KEY": KEY}, capture_output=True, check=True, timeout=20
    )
    assert b'"done":true' in done.stdout.splitlines()[-1]


def test_the_python_lines(gate: Gate) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
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
    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (tmp_path / ".ollama").mkdir()
    (tmp_path / ".ollama" / "id_ed25519.pub").write_bytes(key)
    made = ""
    for command in COMMANDS:
        if command.startswith("scripts/keys "):
            words = [word.replace("~", str(tmp_path)) for word in shlex.split(command)[1:]]
            done = subprocess.run(
                [sys.executable, str(ROOT / "scripts" / "keys.py"), *words],
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
    (shown,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    assert [key.principal.name for key in keys_file.parse(shown.encode(), "README")] == ["alice", "reader"]


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
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/test_gate.py", "-k", "streaming or streams"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert b"streams" in done.stdout


def test_scripts_exist() -> None:
    for name in ("serve", "test", "bench", "refresh-pins"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111


def test_the_table_of_options_is_that_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(ollama_\w+)` \| (\S*) ?\|", README, re.M))
    assert rows == {
        option.name: str(option.default) if isinstance(option.default, int | str) else "" for option in settings.OPTIONS
    }


def test_the_lines_of_the_log_are_as_shown(gate: Gate) -> None:
    shown = re.findall(r"^2026-\S+ \S+ .*", README, re.M)
    real = gate.find(ask(gate.port, "POST", "/api/chat").headers["x-request-id"])
    shape = re.compile(r"[0-9a-f]{16}|[0-9.:TZ-]{6,}|\d+(\.\d)?ms|\d+")
    assert shape.sub("?", real) == shape.sub("?", shown[1])
