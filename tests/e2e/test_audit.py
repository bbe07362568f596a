"""Whole conversations are written down where the operator asked for it, for the operator alone, and nowhere else."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ollama_auth.bounded_copy import MAX_KEPT
from tests.harness.base import BEARER, KEY, wait_until
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Gate
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, ask, chat, head


def conversations(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_what_was_asked_and_answered(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    with Gate(upstream.url, "--set", f"ollama_audit_log={file}", "--set", "ollama_access_log=-") as gate:
        assert gate.find(f"ollama_audit_log: prompts and responses are written to {file}")
        answer = ask(gate.port, "POST", "/api/chat", BEARER, body=chat())
        ask(gate.port, "POST", "/api/chat", body=chat())
        ask(gate.port, "GET", "/api/tags", BEARER)
        wait_until(lambda: conversations(file), "the conversation")
        gate.signal()
        assert gate.wait() == 0
        [line] = conversations(file)
        assert line.pop("time").endswith("Z")
        assert line == {
            "id": answer.headers["x-request-id"],
            "key": "default",
            "path": "/api/chat",
            "status": 200,
            "model": "demo",
            "request": chat().decode(),
            "response": answer.body.decode(),
        }
        assert file.stat().st_mode & 0o777 == 0o600
        assert KEY not in file.read_text()
        assert "sky" not in gate.output


def test_without_it_no_word_is_kept_anywhere(upstream: Upstream) -> None:
    with Gate(upstream.url, "--set", "ollama_access_log=-") as gate:
        ask(gate.port, "POST", "/api/chat", BEARER, body=chat())
        gate.find('"complete":true')
        assert "sky" not in gate.output
        assert "You" not in gate.output


def test_a_conversation_that_broke_off_is_written_as_far_as_it_went(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    upstream.hold()
    with Gate(upstream.url, "--set", f"ollama_audit_log={file}") as gate:
        with Wire(gate.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(chat())}") + chat()) as wire:
            wire.read_until(b'"done":false}\n')
        [line] = wait_until(lambda: conversations(file), "the conversation")
        assert (line["reason"], line["response"].count("\n")) == ("client left", 1)


def test_full_files_are_put_aside_and_so_many_are_kept(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    bounds = ("--set", "ollama_audit_size=6k", "--set", "ollama_audit_keep=5")
    with Gate(upstream.url, "--set", f"ollama_audit_log={file}", *bounds) as gate:
        for _ in range(9):
            answer = ask(gate.port, "POST", "/api/chat", BEARER, body=chat())
            identity = answer.headers["x-request-id"]
            wait_until(lambda: identity in all_of(tmp_path), "the line")  # noqa: B023, at once
        wait_until(lambda: len([*tmp_path.iterdir()]) == 6, "all files to be there")
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_nobody_pushes_the_conversations_of_others_out(upstream: Upstream, tmp_path: Path) -> None:
    """Not by many bytes, not by bytes that JSON makes many of, and each line has its share."""
    file = tmp_path / "audit" / "log"
    file.parent.mkdir()
    keys = tmp_path / "keys.toml"
    keys.write_text(entry("alice") + entry("weak", scopes=["infer", "cloud"]))
    keys.chmod(0o600)
    args = ("--set", f"ollama_audit_log={file}", "--set", "ollama_audit_size=1m")
    with Gate(upstream.url, *args, key=None, env={"OLLAMA_KEYS_FILE": str(keys)}) as gate:
        said = chat(messages=[{"role": "user", "content": "alice said this: Größe, 大きさ"}])
        ask(gate.port, "POST", "/api/chat", bearer("alice"), body=said)
        for filling in (b"\x7f", b"\0", b"\xff", b'"', "é".encode(), "\u2028".encode()):
            ask(gate.port, "POST", "/api/chat", bearer("weak"), body=filling * (1024 * 1024))
        last = ask(gate.port, "POST", "/api/chat", bearer("weak"), body=b"\0" * (5 * 1024 * 1024))
        wait_until(lambda: last.headers["x-request-id"] in all_of(file.parent), "the lines")
        lines = [json.loads(line) for old in file.parent.iterdir() for line in old.read_bytes().split(b"\n") if line]
    assert [line["request"] for line in lines if line["key"] == "alice"] == [json.dumps(json.loads(said))]
    assert len(lines) == 8
    assert sum(line.get("truncated", False) for line in lines) >= 3
    for old in file.parent.iterdir():
        assert old.stat().st_size < 2 * MAX_KEPT


def test_a_file_that_can_not_be_written_ends_the_start(upstream: Upstream, tmp_path: Path) -> None:
    with Gate(upstream.url, "--set", f"ollama_audit_log={tmp_path}/no/audit.log", ready=False) as gate:
        assert gate.wait() == 1
        assert "ollama_audit_log: can't write" in gate.output


def all_of(folder: Path) -> str:
    """What is in its files, whatever their names are at this moment; a line may be written just now."""
    found = ""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            found += file.read_text(errors="replace")
    return found
