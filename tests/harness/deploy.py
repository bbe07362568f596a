"""The examples under scripts/deploy, parsed or running in front of gates."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.harness.base import ROOT, free_port
from tests.harness.gate import Gate, Place, Ready
from tests.harness.programs import proxy, run, tool

DEPLOY = ROOT / "scripts" / "deploy"
UNIT = DEPLOY / "ollama-auth.service"
COMPOSE: dict[str, Any] = YAML(typ="safe").load((DEPLOY / "compose.yaml").read_text())
OBJECTS: list[dict[str, Any]] = list(YAML(typ="safe").load_all((DEPLOY / "kubernetes.yaml").read_text()))


def kinds(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in OBJECTS if one["kind"] == kind}


def template(name: str) -> dict[str, Any]:
    """What the pods of a Deployment or StatefulSet are."""
    found: dict[str, Any] = (kinds("Deployment") | kinds("StatefulSet"))[name]["spec"]["template"]
    return found


def container(name: str) -> dict[str, Any]:
    (found,) = template(name)["spec"]["containers"]
    return dict(found)


@contextmanager
def nginx(gates: Sequence[Gate], cert: Path, folder: Path, example: str | None = None) -> Iterator[int]:
    """A port of nginx with our example (or a variant of it), in a configuration that needs no privileges."""
    port = free_port()
    text = example or (DEPLOY / "nginx.conf").read_text()
    servers = "\n".join(f"    server 127.0.0.1:{gate.port} max_fails=1 fail_timeout=2s;" for gate in gates)
    text = re.sub(r"( *#? *server 127\.0\.0\.1:\d+ .*\n)+", lambda _: servers + "\n", text)
    text = text.replace("listen 443", f"listen 127.0.0.1:{port}")
    text = re.sub(r"/etc/ssl/ollama-auth/\w+\.pem", str(cert), text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    files = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in kinds)
    main = f"user root; daemon off; pid {folder}/pid; error_log stderr; events {{}}"
    (folder / "nginx.conf").write_text(f"{main}\nhttp {{ access_log off; {files}\n{text}}}\n")
    command = [tool("nginx"), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    run(*command, "-t")
    with proxy(command, port, folder):
        yield port


@contextmanager
def haproxy(gates: Sequence[Ready | Place], cert: Path, folder: Path, *more: str) -> Iterator[int]:
    """A port of HAProxy with our example, and more lines of its backend."""
    port = free_port()
    text = (DEPLOY / "haproxy.cfg").read_text()
    servers = "\n".join(f"    server gate{gate.port} 127.0.0.1:{gate.port} port {gate.watch}" for gate in gates)
    text = re.sub(r"( +server gate\d .*\n)+", lambda _: servers + "\n", text)
    text = text.replace(":443 ssl", f"127.0.0.1:{port} ssl").replace("/etc/ssl/ollama-auth/both.pem", str(cert))
    (folder / "haproxy.cfg").write_text("\n".join((text.rstrip(), *more, "")))
    command = [tool("haproxy"), "-f", str(folder / "haproxy.cfg")]
    run(*command, "-c")
    with proxy([*command, "-db"], port, folder):
        yield port


@contextmanager
def caddy(gates: Sequence[Gate], cert: Path, folder: Path) -> Iterator[int]:
    """A port of Caddy with our example, with that certificate, which asks nobody for another one."""
    port, (gate,) = free_port(), gates
    text = (DEPLOY / "Caddyfile").read_text().replace("127.0.0.1:8081", f"127.0.0.1:{gate.port}")
    text = text.replace("ollama.example {", f"https://localhost:{port} {{\n\ttls {cert} {cert}")
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + text)
    command = [tool("caddy"), "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    with proxy(command, port, folder, env={"HOME": str(folder)}):
        yield port
