"""The real client libraries and curl, through the real mitmdump, as their users write it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.base import KEY
from tests.harness.gate import Gate
from tests.harness.upstream import Upstream

if TYPE_CHECKING:  # Their imports take three seconds, and every worker imports all tests.
    import anthropic
    import ollama
    import openai

ASK = [{"role": "user", "content": "why is the sky blue"}]
WRONG = "sk-ollama-wrong-0123456789abcdef"


def with_ollama(gate: Gate, key: str = KEY) -> ollama.Client:
    import ollama

    return ollama.Client(host=gate.url, headers={"Authorization": f"Bearer {key}"})


def with_openai(gate: Gate, key: str = KEY) -> openai.OpenAI:
    import openai

    return openai.OpenAI(base_url=f"{gate.url}/v1", api_key=key)


def with_anthropic(gate: Gate, key: str = KEY) -> anthropic.Anthropic:
    import anthropic

    return anthropic.Anthropic(base_url=gate.url, api_key=key)


def curl(*args: str) -> str:
    done = subprocess.run(["curl", "-sS", "--max-time", "10", *args], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.ways
def test_ollama(gate: Gate) -> None:
    with with_ollama(gate) as client:
        parts = list(client.chat("demo", ASK, stream=True))
        assert len(parts) > 3
        assert parts[-1].done
        whole = client.chat("demo", ASK)
        assert whole.message.content == "".join(part.message.content or "" for part in parts)
        assert client.generate("demo", "the sky is").response
        assert len(client.embed("demo", ["a", "b"]).embeddings) == 2
        assert "demo:latest" in [model.model for model in client.list().models]
        assert client.show("demo").details


def test_ollama_uploads_a_blob(gate: Gate, tmp_path: Path, upstream: Upstream) -> None:
    content = b"weights " * 10_000
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with with_ollama(gate) as client:
        digest = client.create_blob(file)
    assert digest == "sha256:" + hashlib.sha256(content).hexdigest()
    assert upstream.last.body_length == len(content)


def test_ollama_reads_the_key_from_the_environment(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    import ollama

    monkeypatch.setenv("OLLAMA_API_KEY", KEY)
    with ollama.Client(host=gate.url) as client:
        assert client.list().models


async def test_ollama_async(gate: Gate) -> None:
    import ollama

    async with ollama.AsyncClient(host=gate.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        assert len([part async for part in await client.chat("demo", ASK, stream=True)]) > 3


def test_ollama_with_a_wrong_key(gate: Gate) -> None:
    import ollama

    with with_ollama(gate, WRONG) as client:
        with pytest.raises(ollama.ResponseError, match="the key is not known here") as refusal:
            client.chat("demo", ASK)
        assert refusal.value.status_code == 401
        with pytest.raises(ollama.ResponseError, match="the key is not known here"):
            list(client.chat("demo", ASK, stream=True))


@pytest.mark.ways
def test_openai(gate: Gate) -> None:
    with with_openai(gate) as client:
        with client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hello"}], stream=True
        ) as stream:
            assert len(list(stream)) > 3
        whole = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hello"}])
        assert whole.choices[0].message.content
        assert client.embeddings.create(model="demo", input="x").data[0].embedding
        assert "demo:latest" in [model.id for model in client.models.list()]


def test_openai_with_a_wrong_key(gate: Gate) -> None:
    import openai

    with with_openai(gate, WRONG) as client:
        with pytest.raises(openai.AuthenticationError, match="the key is not known here") as refusal:
            client.models.list()
        assert refusal.value.code == "invalid_api_key"


@pytest.mark.slow
@pytest.mark.ways
def test_anthropic(gate: Gate) -> None:
    with with_anthropic(gate) as client:
        with client.messages.stream(
            model="demo", max_tokens=50, messages=[{"role": "user", "content": "hello"}]
        ) as stream:
            assert "".join(stream.text_stream)
        whole = client.messages.create(model="demo", max_tokens=50, messages=[{"role": "user", "content": "hello"}])
        assert whole.content[0].type == "text"
        assert whole._request_id
        assert " 200 " in gate.find(whole._request_id)


@pytest.mark.slow
def test_anthropic_with_a_bearer_token(gate: Gate) -> None:
    import anthropic

    with anthropic.Anthropic(base_url=gate.url, auth_token=KEY) as client:
        assert client.messages.create(model="demo", max_tokens=9, messages=[{"role": "user", "content": "hello"}])


def test_anthropic_with_an_empty_key_beside_the_token(gate: Gate) -> None:
    """Versions before 2 send it where ANTHROPIC_API_KEY is empty, as these pages tell people to set it."""
    import anthropic

    with anthropic.Anthropic(base_url=gate.url, auth_token=KEY, default_headers={"X-Api-Key": ""}) as client:
        assert client.messages.create(model="demo", max_tokens=9, messages=[{"role": "user", "content": "hello"}])


def test_anthropic_with_a_wrong_key(gate: Gate) -> None:
    import anthropic

    with with_anthropic(gate, WRONG) as client:
        with pytest.raises(anthropic.AuthenticationError, match="the key is not known here") as refusal:
            client.messages.create(model="demo", max_tokens=9, messages=[{"role": "user", "content": "hello"}])
        assert isinstance(refusal.value.body, dict)
        assert refusal.value.body["error"]["type"] == "authentication_error"
        assert refusal.value.request_id == refusal.value.response.headers["x-request-id"]
        assert " 401 (unknown)" in gate.find(refusal.value.request_id)


@pytest.mark.parametrize("program", ["curl", "wget", "urllib"])
def test_a_program_that_waits_to_be_asked_for_its_password(gate: Gate, program: str) -> None:
    """It sends the user and the key only to who says Basic."""
    url = f"{gate.url}/api/version"
    commands = {
        "curl": ["curl", "-sS", "--max-time", "10", "--anyauth", "-u", f"me:{KEY}", url],
        "wget": ["wget", "-qO-", "--timeout=10", "--tries=1", "--user=me", f"--password={KEY}", url],
    }
    if program == "urllib":
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, url, "me", KEY)
        with urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords)).open(url, timeout=10) as said:
            assert json.load(said)["version"]
    elif shutil.which(program):
        done = subprocess.run(commands[program], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["version"]


@pytest.mark.ways
def test_curl(gate: Gate, tmp_path: Path) -> None:
    bearer = ("-H", f"Authorization: Bearer {KEY}")
    question = json.dumps({"model": "demo", "messages": ASK})
    lines = curl("-N", *bearer, f"{gate.url}/api/chat", "-d", question).splitlines()
    assert json.loads(lines[-1])["done"] is True
    assert curl("-u", f"me:{KEY}", f"{gate.url}/api/version")
    assert json.loads(curl(f"{gate.url}/api/chat", "-d", question)).keys() == {"error"}
    blob = tmp_path / "blob"
    blob.write_bytes(b"x" * 3_000_000)
    digest = "sha256:" + hashlib.sha256(blob.read_bytes()).hexdigest()
    upload = (*bearer, "-X", "POST", "-T", str(blob), f"{gate.url}/api/blobs/{digest}", "-o", "/dev/null")
    assert curl(*upload, "-w", "%{http_code}") == "201"
    assert curl(*upload, "-w", "%{http_code}") == "200"


@pytest.mark.ways
def test_curl_uploading_without_a_key_reads_the_401(gate: Gate, tmp_path: Path, upstream: Upstream) -> None:
    """It waits for 100 Continue, gets the answer instead, and sends nothing."""
    blob = tmp_path / "blob"
    blob.write_bytes(b"x" * 3_000_000)
    with upstream.untouched():
        said = curl(
            "-X", "POST", "-T", str(blob), f"{gate.url}/api/blobs/sha256:00", "-w", "%{http_code} %{size_upload}"
        )
    assert json.loads(said.splitlines()[0])["error"]
    assert said.splitlines()[1] == "401 0"
