"""The examples under scripts/deploy, by the tools of those they are for, and in front of a real gate."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ollama_auth import option_table
from ollama_auth.auth.keys import digest
from tests.harness.base import BEARER, KEY, ROOT, free_port, wait_until
from tests.harness.deploy import COMPOSE, DEPLOY, OBJECTS, UNIT, caddy, container, haproxy, kinds, nginx, template
from tests.harness.gate import Gate, Ready, logged
from tests.harness.programs import listens, proxy, run, tool
from tests.harness.upstream import Upstream
from tests.harness.wire import Line, Response, TlsWire, chat, head, parse

OPTIONS = {option.name for option in option_table.OPTIONS}
ELSEWHERE = {"ollama_limits_storage", "ollama_metrics_listen"}
"""Options of what is not on this machine, or of a port that may be taken."""
GATE = {"app.kubernetes.io/name": "ollama-auth"}


def option(arguments: Sequence[str], name: str) -> str:
    """The value that a command line sets an option to."""
    return next(text.partition("=")[2] for text in arguments if text.startswith(f"{name}="))


# By their own tools.


def test_compose_is_what_its_schema_says() -> None:
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_open_webui_is_added_to_compose() -> None:
    """It reaches the gate alone, by a key that no file has."""
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "open-webui.yaml")
    ((_, added),) = YAML(typ="safe").load((DEPLOY / "open-webui.yaml").read_text())["services"].items()
    assert set(added["networks"]) & set(COMPOSE["services"]["ollama"]["networks"]) == set()
    assert set(added["networks"]) <= set(COMPOSE["services"]["gate"]["networks"])
    assert all(port.startswith("127.0.0.1:") for port in added["ports"])
    assert added["environment"]["OPENAI_API_BASE_URL"] == "http://gate:8081/v1"
    assert added["environment"]["OPENAI_API_KEY"].startswith("${OLLAMA_API_KEY:?")


def test_kustomize_adds_the_keys(tmp_path: Path) -> None:
    for name in ("kubernetes.yaml", "kustomization.yaml"):
        (tmp_path / name).write_text((DEPLOY / name).read_text())
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "keys.toml").write_text("# no keys\n")
    (tmp_path / "made.yaml").write_text(run(tool("kubectl"), "kustomize", tmp_path))
    made = list(YAML(typ="safe").load_all((tmp_path / "made.yaml").read_text()))
    assert len(made) == len(OBJECTS) + 1
    (secret,) = [one for one in made if one["kind"] == "Secret"]
    assert (secret["metadata"]["name"], list(secret["data"])) == ("ollama-auth-keys", ["keys.toml"])
    said = run(tool("kubernetes-validate"), "-k", "1.37", "--strict", tmp_path / "made.yaml")
    assert said.count("passed for resource") == len(made)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_kubernetes_takes_the_manifests(version: str) -> None:
    files = DEPLOY / "kubernetes.yaml", DEPLOY / "ingress.yaml"
    said = run(tool("kubernetes-validate"), "-k", version, "--strict", *files)
    assert said.count("passed for resource") == len(OBJECTS) + 1


def test_systemd_takes_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    """`systemd-analyze security` gives 0 to 10, and 9.6 to a service without any of it."""
    analyze = tool("systemd-analyze")
    (unit := tmp_path / UNIT.name).write_text(
        UNIT.read_text().replace("/opt/ollama-auth/.venv/bin/python", "/bin/true")
    )
    (ollama := tmp_path / "ollama.service").write_text("[Service]\nExecStart=/bin/true serve\n")
    (drop_in := tmp_path / "ollama.service.d").mkdir()
    shutil.copy(DEPLOY / "ollama.conf", drop_in)
    assert run(analyze, "verify", "--man=no", unit, ollama) == ""
    run(analyze, "security", "--offline=true", "--threshold=15", unit)


# The gate takes what it is given there.


def unit_command() -> list[str]:
    match = re.search(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert match
    return shlex.split(match[1])


GIVEN = {
    "compose": COMPOSE["services"]["gate"]["command"],
    "kubernetes": container("ollama-auth")["args"],
    "systemd": unit_command()[3:],
} | {
    name: re.findall(r"--set|(?<=--set )\S+", (DEPLOY / name).read_text())
    for name in ("nginx.conf", "haproxy.cfg", "Caddyfile", "traefik.yaml", "cloudflared.yaml")
}


def known(arguments: Sequence[str]) -> list[str]:
    """What a gate can be given here."""
    named = [text for text in arguments if text.partition("=")[0] in OPTIONS - ELSEWHERE]
    return [word for text in named for word in ("--set", text)]


@pytest.mark.parametrize("where", GIVEN)
def test_the_gate_takes_the_arguments(upstream: Upstream, where: str) -> None:
    assert known(GIVEN[where])
    with Gate(upstream.url, *known(GIVEN[where])) as gate:
        assert gate.process.poll() is None


@pytest.mark.parametrize("where", GIVEN)
def test_no_option_is_misspelt(where: str) -> None:
    names = {text.partition("=")[0] for text in GIVEN[where] if "=" in text}
    assert names <= OPTIONS


@pytest.mark.parametrize(
    ("where", "patience"),
    [
        ("compose", int(COMPOSE["services"]["gate"]["stop_grace_period"].removesuffix("s"))),
        ("systemd", int(re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)[0])),
        (
            "kubernetes",
            template("ollama-auth")["spec"]["terminationGracePeriodSeconds"]
            - container("ollama-auth")["lifecycle"]["preStop"]["sleep"]["seconds"],
        ),
    ],
)
def test_nobody_is_killed_within_the_grace_period(where: str, patience: int) -> None:
    assert patience > int(option(GIVEN[where], "ollama_grace_period"))


# Compose: only the gate is published.


def test_compose_publishes_the_gate_alone_and_to_this_machine() -> None:
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert list(published) == ["gate"]
    assert all(port.startswith("127.0.0.1:") for port in published["gate"])
    assert COMPOSE["networks"]["inside"]["internal"]
    shared = set(COMPOSE["services"]["gate"]["networks"]) & set(COMPOSE["services"]["ollama"]["networks"])
    assert shared == {"inside"}
    assert COMPOSE["services"]["gate"]["environment"]["OLLAMA_ENDPOINT"] == "http://ollama:11434"


def test_compose_gives_no_rights() -> None:
    for service in COMPOSE["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert COMPOSE["services"]["gate"]["read_only"]


def test_the_key_of_compose_is_in_no_variable_and_not_in_git() -> None:
    gate = COMPOSE["services"]["gate"]
    (name,) = gate["secrets"]
    assert gate["environment"]["OLLAMA_API_KEY_FILE"] == f"/run/secrets/{name}"
    file = DEPLOY / COMPOSE["secrets"][name]["file"]
    assert subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT, check=False).returncode in (0, 128)


# Kubernetes: what the schema can't tell.


@pytest.mark.parametrize("name", ["ollama-auth", "ollama", "redis"])
def test_pods_are_restricted(name: str) -> None:
    """What the Pod Security Standard `restricted` asks for, and a root that is read-only."""
    pod = template(name)["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"], "a Service named ollama would set variables that begin with OLLAMA_"


def test_names_lead_somewhere() -> None:
    """Selectors, ports and volumes are those of something."""
    for name, service in kinds("Service").items():
        assert service["spec"]["selector"] == template(name)["metadata"]["labels"]
        ports = {port["name"] for port in container(name)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for name in ("ollama-auth", "ollama", "redis"):
        workload = (kinds("Deployment") | kinds("StatefulSet"))[name]["spec"]
        assert workload["selector"]["matchLabels"] == template(name)["metadata"]["labels"]
        volumes = template(name)["spec"].get("volumes", []) + [
            claim["metadata"] for claim in workload.get("volumeClaimTemplates", [])
        ]
        mounted = {mount["name"] for mount in container(name).get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in volumes}
    assert kinds("PodDisruptionBudget")["ollama-auth"]["spec"]["selector"]["matchLabels"] == GATE
    assert kinds("Deployment")["ollama-auth"]["spec"]["replicas"] >= 2


def test_only_the_gate_reaches_ollama_and_redis() -> None:
    policies = kinds("NetworkPolicy")
    assert policies["nobody"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name in ("ollama", "redis"):
        (rule,) = policies[name]["spec"]["ingress"]
        assert rule["from"] == [{"podSelector": {"matchLabels": GATE}}]
    others = {name: policy for name, policy in policies.items() if name not in ("ollama", "redis", "ollama-auth")}
    assert not any("ingress" in policy["spec"] for policy in others.values())


def test_the_gate_is_led_to_its_neighbours() -> None:
    given = container("ollama-auth")
    env = {one["name"]: one["value"] for one in given["env"]}
    assert env["OLLAMA_ENDPOINT"] == "http://ollama:11434"
    assert option(given["args"], "ollama_limits_storage") == "redis://redis:6379"
    metrics = next(port["containerPort"] for port in given["ports"] if port["name"] == "metrics")
    assert option(given["args"], "ollama_metrics_listen") == f"0.0.0.0:{metrics}"
    probed = {
        given[f"{kind}Probe"]["httpGet"]["path"]: given[f"{kind}Probe"]["httpGet"]["port"]
        for kind in ("liveness", "readiness")
    }
    assert probed == {"/healthz": "metrics", "/readyz": "metrics"}
    folders = {mount["mountPath"]: mount for mount in given["volumeMounts"]}
    assert "subPath" not in folders[str(Path(env["OLLAMA_KEYS_FILE"]).parent)]


def publish(folder: Path, version: str, text: str) -> None:
    """What the kubelet does to a mounted Secret: a folder for each version, and links that lead to the newest."""
    (folder / version).mkdir()
    (folder / version / "keys.toml").write_text(text)
    (folder / version / "keys.toml").chmod(0o440)
    (folder / "new").symlink_to(version)
    (folder / "new").rename(folder / "..data")
    if not (folder / "keys.toml").is_symlink():
        (folder / "keys.toml").symlink_to("..data/keys.toml")


def test_a_new_secret_reaches_a_gate_that_runs(upstream: Upstream, tmp_path: Path) -> None:
    old, new = (f"sk-ollama-{letter * 32}" for letter in "ab")
    entry = '[[keys]]\nname = "alice"\nsha256 = "%s"\n'
    publish(tmp_path, "..1", entry % digest(old).hex())
    env = {"OLLAMA_KEYS_FILE": str(tmp_path / "keys.toml")}
    with Gate(upstream.url, *known(GIVEN["kubernetes"]), key=None, env=env) as gate:
        assert status(gate.port, old) == 200
        publish(tmp_path, "..2", entry % digest(new).hex())
        wait_until(lambda: status(gate.port, new) == 200, "the new key to be good")
        assert status(gate.port, old) == 401


def status(port: int, key: str) -> int:
    with Line.to(port, head("GET", "/api/tags", f"Authorization: Bearer {key}", "Connection: close")) as line:
        return parse(line.read_all()).status


# systemd: the command, under what of the sandbox can be had without systemd.

MEMORY_DENY_WRITE_EXECUTE = """
import ctypes, os, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
    sys.exit(77)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_the_units_command_serves_without_executable_memory(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    lines = re.findall(r"^Environment=(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE)
    given = {name: value.replace("%d", str(tmp_path)).replace("%t", str(tmp_path)) for name, value in lines}
    given["OLLAMA_ENDPOINT"] = upstream.url
    port = free_port()
    program = [sys.executable if word.endswith("/python") else word for word in unit_command()]
    program = [word.replace("/opt/ollama-auth", str(ROOT)) for word in program]
    launcher = [sys.executable, "-c", MEMORY_DENY_WRITE_EXECUTE, *program]
    with (
        (tmp_path / "out").open("wb") as out,
        subprocess.Popen(
            [*launcher, "--listen-host", "127.0.0.1", "--listen-port", str(port)], env=given, stdout=out, stderr=out
        ) as process,
    ):
        try:
            wait_until(
                lambda: process.poll() is not None or "listening on" in (tmp_path / "out").read_text(), "a start", 30
            )
            if process.poll() == 77:
                pytest.skip("this kernel has no PR_SET_MDWE")
            assert status(port, KEY) == 200
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


# nginx and HAProxy, in front of real gates.


@pytest.fixture(scope="module")
def shared_ready(shared_upstream: Upstream) -> Iterator[Ready]:
    args = ("--set", "ollama_trusted_proxies=127.0.0.1", "--set", "ollama_access_log=-")
    with Ready(shared_upstream.url, *args) as gate:
        yield gate


@pytest.fixture
def ready(shared_ready: Ready, upstream: Upstream) -> Ready:
    """A gate in front of `upstream`."""
    return shared_ready


PROXIES = pytest.mark.parametrize("balancer", [nginx, haproxy, caddy])
BALANCERS = pytest.mark.parametrize("balancer", [nginx, haproxy])


def ask(port: int, cert: Path, *fields: str) -> Response:
    with TlsWire(port, cert, head("GET", "/api/tags", "Connection: close", *fields, host="localhost")) as wire:
        return parse(wire.read_response().raw)


def stream(port: int, cert: Path) -> TlsWire:
    """A chat that has got its first token, and gets no more before `upstream.go_on()`."""
    body = chat()
    data = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}", host="localhost") + body
    wire = TlsWire(port, cert, data)
    assert b"200 OK" in wire.read_until(b'"done":false}')
    return wire


@PROXIES
def test_who_has_no_key_gets_the_gates_answer(
    balancer: Any, ready: Ready, upstream: Upstream, cert: Path, tmp_path: Path
) -> None:
    with balancer([ready], cert, tmp_path) as port:
        wait_until(lambda: ask(port, cert, BEARER).status == 200, "the balancer to know the gate")
        with upstream.untouched():
            refusal = ask(port, cert)
        assert (refusal.status, refusal.headers["content-type"]) == (401, "application/json")
        assert "www-authenticate" in refusal.headers


@PROXIES
def test_the_gate_knows_the_client(balancer: Any, ready: Ready, cert: Path, tmp_path: Path) -> None:
    """Whatever it says of itself."""
    fields = "X-Forwarded-For: 198.51.100.1", "Forwarded: for=198.51.100.1", "X-Real-IP: 198.51.100.1"
    with balancer([ready], cert, tmp_path) as port:
        wait_until(lambda: ask(port, cert, BEARER).status == 200, "the balancer to know the gate")
        with logged(ready, 2) as lines:
            for more in ((), fields):
                with TlsWire(port, cert, source="127.0.0.9") as wire:
                    wire.send(head("GET", "/api/tags", BEARER, "Connection: close", *more, host="localhost"))
                    assert wire.read_response().status == 200
    assert [line["client"] for line in lines] == ["127.0.0.9"] * 2


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_the_gate_knows_the_client_of_a_haproxy_that_passes_tls_on(
    upstream: Upstream, cert: Path, tmp_path: Path, version: str
) -> None:
    args = ("--set", "ollama_trusted_proxies=127.0.0.1", "--set", "ollama_proxy_protocol=true")
    port, log = free_port(), ("--set", "ollama_access_log=-", "--certs", str(cert))
    with Gate(upstream.url, *args, *log) as gate:
        lines = "mode tcp", "timeout connect 5s", "timeout client 60s", "timeout server 60s"
        public = f"listen public\n bind 127.0.0.1:{port}\n server gate 127.0.0.1:{gate.port} {version}\n"
        (tmp_path / "haproxy.cfg").write_text("\n ".join(("defaults", *lines)) + "\n" + public)
        with (
            proxy([tool("haproxy"), "-f", str(tmp_path / "haproxy.cfg"), "-db"], port, tmp_path),
            logged(gate) as lines_of_log,
            TlsWire(port, cert, source="127.0.0.9") as wire,
        ):
            assert wire.send(head("GET", "/api/tags", BEARER, host="localhost")).read_response().status == 200
        assert lines_of_log[0]["client"] == "127.0.0.9"


def test_clients_of_a_caddy_that_speaks_http2_to_the_gate(upstream: Upstream, cert: Path, tmp_path: Path) -> None:
    """They share connections: the refusal of one is no other's concern."""
    args = ("--set", "ollama_trusted_proxies=127.0.0.1", "--set", "ollama_access_log=-", "--certs", str(cert))
    port, body = free_port(), chat()
    data = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body
    with Gate(upstream.url, *args) as gate:
        site = ("admin off", "http://:%d", "https://localhost:%d", "tls_insecure_skip_verify\n versions 2")
        text = "{{\n {}\n}}\n{} {{\n reverse_proxy {} {{\n flush_interval -1\n transport http {{\n {}\n }}\n }}\n}}\n"
        (tmp_path / "Caddyfile").write_text(text.format(*site) % (port, gate.port))
        command = [tool("caddy"), "run", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")]
        upstream.hold()
        with (
            proxy(command, port, tmp_path, env={"HOME": str(tmp_path)}),
            logged(gate, 41) as lines,
            Line.to(port, data, "127.0.0.8") as stream,
        ):
            stream.read_until(b'"done":false}')
            for number in range(40):
                key = BEARER if number % 2 else "Authorization: Bearer wrong"
                with Line.to(port, head("GET", "/api/tags", key, "Connection: close"), "127.0.0.9") as line:
                    assert parse(line.read_all()).status == (200 if number % 2 else 401)
            upstream.go_on()
            assert b'"done":true' in stream.read_until(b"0\r\n\r\n")
        assert [line["client"] for line in lines] == ["127.0.0.9"] * 40 + ["127.0.0.8"]


@BALANCERS
def test_tokens_pass_at_once_and_a_client_that_leaves_ends_the_request(
    balancer: Any, ready: Ready, upstream: Upstream, cert: Path, tmp_path: Path
) -> None:
    with balancer([ready], cert, tmp_path) as port:
        wait_until(lambda: ask(port, cert, BEARER).status == 200, "the balancer to know the gate")
        wait_until(lambda: upstream.open_connections == 0, "everything before to end")
        upstream.hold()
        stays, leaves = stream(port, cert), stream(port, cert)
        assert upstream.open_connections == 2
        leaves.close()
        wait_until(lambda: upstream.open_connections == 1, "the request to be ended upstream")
        upstream.go_on()
        with stays:
            assert b'"done":true' in stays.read_until(b"0\r\n\r\n")


@pytest.mark.slow
@BALANCERS
def test_a_gate_that_is_stopped_takes_no_stream_and_no_request_with_it(
    balancer: Any, upstream: Upstream, cert: Path, tmp_path: Path
) -> None:
    with Ready(upstream.url) as one, Ready(upstream.url) as two, balancer([one, two], cert, tmp_path) as port:
        wait_until(lambda: all(ask(port, cert, BEARER).status == 200 for _ in range(4)), "the balancer to know both")
        upstream.hold()
        running = [stream(port, cert) for _ in range(4)]
        one.signal()
        wait_until(lambda: not listens(one.port), "it to stop listening")
        assert one.process.poll() is None, "its streams still run"
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert ask(port, cert, BEARER).status == 200
        upstream.go_on()
        for wire in running:
            with wire:
                assert b'"done":true' in wire.read_until(b"0\r\n\r\n")
        assert one.wait() == 0
