"""A key of any alphabet, in any place of a request, alone or within a longer word, is in no log, viewer or answer."""

import hashlib
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.harness.base import BEARER, KEY, wait_until
from tests.harness.certificates import certificate
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Gate
from tests.harness.http2 import H2
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, ask, chat

KEYS = {
    "base64": "aB3/xyz+Q9kLmN0pQrStUvWxYz012345==",
    "base64url": "aB3_xyz-Q9kLmN0pQrStUvWxYz012345",
    "hex": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
    "half": "0f1e2d3c4b5a6978",
    "uuid": "6f9619ff-8b86-d011-b42d-00cf4fc964ff",
    "ascii85": "9jqo^BlbD-BleB1DJ+*+F(f,q/0JhKF<",
    "words": "correct.horse.battery.staple",
    "marks": "p@ss:word!with$marks&=;,~'()*",
    "slashes": "a/b/c/d/e/f/g/h/i/j",
    "made": "sk-ollama-00112233445566778899aabbccddeeff",
}
SAFE = "/:@!$&'()*+,;=~"
"""What may stand in a path as it is."""


def keys_file(folder: Path) -> Path:
    path = folder / "keys.toml"
    tables = [
        f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
        for name, key in KEYS.items()
    ]
    path.write_text("\n".join([*tables, entry("friend")]))
    path.chmod(0o600)
    return path


def paths(key: str) -> list[str]:
    plain, encoded = quote(key, safe=SAFE), "".join(f"%{byte:02x}" for byte in key.encode())
    forms = (f"/{plain}", f"/api/{plain}", f"/v1/x={plain}", f"/v1/models/a{plain}b", f"/{encoded}/api/chat")
    return [*forms, f"/api/tags?x={plain}", f"/user:{plain}@gate/api/chat"]


def send(port: int, key: str, *credential: str, model: str = "demo") -> str:
    """Put the key where a client may put it. Returns what was reflected."""
    told = ""
    for path in paths(key):
        answer = ask(port, "GET", path, *credential, f"User-Agent: me/1 ({key})", f"Accept: a/{key}")
        told += repr(answer.headers)
    for form in ("{}", "x{}", "{}-1", "req.{}.2"):
        answer = ask(port, "GET", "/api/tags", *credential, "X-Request-Id: " + form.format(key), f"Origin: {key}")
        told += repr(answer.headers)
    for line, *fields in ((f"{key[:32]} / HTTP/1.1", f"X-{key}: 1"), (f"GET {key} HTTP/1.1", f"{key}: 1")):
        raw = "\r\n".join([line, "Host: x", "Connection: close", *fields, *credential, "", ""])
        with Wire(port, raw.encode()) as wire:
            told += repr(wire.read_all())
    ask(port, "POST", "/api/chat", *credential, f"Content-Type: x/{key}", body=chat(model))
    return told


def assert_hidden(text: str, key: str) -> None:
    for form in (key, key.lower(), quote(key, safe=""), json.dumps(key)[1:-1], quote(key, safe=SAFE)):
        assert form not in text, (key, text[max(0, text.index(form) - 300) : text.index(form) + 100])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["text", "JSON"])
def test_no_key_of_any_alphabet_is_logged_or_reflected(upstream: Upstream, tmp_path: Path, way: str) -> None:
    flows = tmp_path / "flows"
    args = ["--set", "ollama_access_log=-"]
    if way == "text":
        args = ["--set", "flow_detail=4", "--set", "termlog_verbosity=debug", "-w", str(flows)]
    env = {"OLLAMA_KEYS_FILE": str(keys_file(tmp_path))}
    with Gate(upstream.url, *args, "--set", "ollama_max_wrong_keys=0", env=env) as gate:
        for key in list(KEYS.values())[:: 3 if way == "text" else 1]:
            assert_hidden(send(gate.port, key), key)
            assert_hidden(send(gate.port, key, f"X-Api-Key: {key}"), key)
            if way == "JSON":  # Elsewhere it is in the flow of what went upstream.
                assert_hidden(send(gate.port, key, bearer("friend")), key)
                assert_hidden(send(gate.port, key, f"X-Api-Key: {key}", model=f"x{key}"), key)
        last = ask(gate.port, "GET", "/api/tags").headers["x-request-id"]
        gate.find(last)
        text = gate.output
        gate.signal()
        gate.wait()
    if way == "text":
        saved = flows.read_bytes().decode("latin-1")
        assert "refused: " in saved
        text += saved
    for key in KEYS.values():
        assert_hidden(text, key)


@pytest.mark.slow
def test_no_key_is_logged_over_http2(upstream: Upstream, tmp_path: Path) -> None:
    cert = certificate(tmp_path)
    env = {"OLLAMA_KEYS_FILE": str(keys_file(tmp_path))}
    with Gate(upstream.url, "--certs", str(cert), "--set", "ollama_access_log=-", env=env) as gate:
        for key in KEYS.values():
            for path in paths(key)[:2]:
                fields = [("x-request-id", f"x{key}"), ("user-agent", key), (f"x-{key}".lower(), "1")]
                with H2(gate.port, cert, lax=True) as client:
                    stream = client.request("GET", path, *fields, key=False)
                    client.until_closed()
                    assert stream
        wait_until(lambda: gate.output.count('"time"') >= len(KEYS), "the lines")
        for key in KEYS.values():
            assert_hidden(gate.output, key)


def test_what_can_hold_no_key_is_shown(gate: Gate) -> None:
    """Logs stay useful: words of the API, short paths, ids of proxies, and what the holder of a key asks for."""

    def shown(path: str, *fields: str) -> str:
        return gate.find(ask(gate.port, "GET", path, *fields).headers["x-request-id"])

    for identity in ("b7ad6b7169203331b7ad6b7169203331", "7f9619ff-8b86-d011-b42d-00cf4fc964f0", "job-7.2"):
        assert f" {identity} " in shown("/api/tags", f"X-Request-Id: {identity}")
    assert " /v1/chat/completions 401 " in shown("/v1/chat/completions")
    assert " /favicon.ico 401 " in shown("/favicon.ico")
    assert " /***/api/chat 401 " in shown("/ollama/proxy/api/chat")
    assert " /ollama/proxy/api/tags 404 " in shown("/ollama/proxy/api/tags", BEARER)
    assert " /v1/models/qwen2.5-coder:32b " in shown("/v1/models/qwen2.5-coder:32b", BEARER)


def test_a_model_that_is_the_key(gate: Gate, upstream: Upstream) -> None:
    """The key in the wrong field of a client's settings: what Ollama makes of it is not shown, either."""
    answer = ask(gate.port, "POST", "/api/chat", BEARER, body=chat(KEY))
    gate.find(answer.headers["x-request-id"])
    assert KEY not in gate.output
