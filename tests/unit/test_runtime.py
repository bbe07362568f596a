"""Keys that are read while it runs: whatever comes together, what was read last is in force."""

import asyncio
import os
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.options import Options

from ollama_auth import settings
from ollama_auth.runtime import ActiveConfig, check_apart
from ollama_auth.settings import SettingsError, read
from ollama_auth.telemetry.monitor import Monitor
from tests.harness.base import PATIENCE
from tests.harness.cases import each_of
from tests.harness.credentials import entry
from tests.harness.options import FakeOptions


class Slow:
    """settings.read_keys, of which the first call ends when it is told to."""

    def __init__(self) -> None:
        self.has_read, self.may_end = threading.Event(), threading.Event()
        self.real = settings.read_keys

    def __call__(self, *args: Any) -> Any:
        found = self.real(*args)
        if not self.has_read.is_set():
            self.has_read.set()
            assert self.may_end.wait(PATIENCE)
        return found


@pytest.mark.parametrize("how", ["reload", "take"])
async def test_an_older_reading_does_not_undo_a_newer_one(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that was revoked meanwhile would be good again, until the next change of the file."""
    (file := tmp_path / "keys.toml").write_text(entry("revoked"))
    file.chmod(0o600)
    options: Any = FakeOptions(ollama_keys_file=str(file))
    config = ActiveConfig(lambda: None, Monitor(None, lambda: NoSite()))  # type: ignore[arg-type]
    config.take(read(options, {}))
    slow = Slow()
    monkeypatch.setattr(settings, "read_keys", slow)
    monkeypatch.delenv("OLLAMA_API_KEY", raising=False)

    older = asyncio.create_task(config.reload(options))
    await asyncio.to_thread(slow.has_read.wait, PATIENCE)
    file.write_text(entry("fresh"))
    if how == "take":
        config.take(read(options, {}))
    newer = asyncio.create_task(config.reload(options) if how == "reload" else asyncio.sleep(0))
    await asyncio.wait({newer}, timeout=0.2)
    slow.may_end.set()
    await asyncio.wait_for(asyncio.gather(older, newer), PATIENCE)
    assert config.settings
    assert set(config.settings.ring.principals) == {"fresh"}


class NoSite:
    def routes(self) -> list[tuple[Any, ...]]:
        return []

    def check_metrics(self, request: object) -> None: ...


REFUSED_LATE = {
    "the audit log": {"ollama_audit_log": "/nonexistent/audit"},
    "the audit log, with an audit log before": {"ollama_audit_log": "/nonexistent/audit", "ollama_audit_size": "1k"},
    "the listener": {"ollama_metrics_listen": "192.0.2.1:9464"},
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # A socket that tornado could not bind.
@pytest.mark.parametrize("what", REFUSED_LATE)
async def test_what_was_opened_for_settings_that_are_refused_is_closed(what: str, tmp_path: Path) -> None:
    config = ActiveConfig(lambda: None, Monitor(None, lambda: NoSite()))  # type: ignore[arg-type]
    before: dict[str, Any] = {"ollama_api_key": "a-key-0123456789"}
    if "before" in what:
        before["ollama_audit_log"] = str(tmp_path / "audit")
    config.take(read(FakeOptions(**before), {}))
    log, audit, settings = config.log, config.audit, config.settings
    descriptors = sorted(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    for number in range(3):
        changed = before | {"ollama_access_log": str(tmp_path / f"log{number}")} | REFUSED_LATE[what]
        with pytest.raises(SettingsError):
            config.take(read(FakeOptions(**changed), {}))
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads
    assert (config.log, config.audit, config.settings) == (log, audit, settings)
    config.close()


PORTS: dict[str, tuple[tuple[str, int], dict[str, Any], bool]] = {
    "the same address": (("127.0.0.1", 8081), {"listen_host": "127.0.0.1", "listen_port": 8081}, False),
    "the gate is everywhere": (("127.0.0.1", 8081), {"listen_host": "", "listen_port": 8081}, False),
    "the metrics are everywhere": (("0.0.0.0", 8081), {"listen_host": "127.0.0.1", "listen_port": 8081}, False),
    "a name": (("localhost", 8081), {"listen_host": "127.0.0.1", "listen_port": 8081}, False),
    "in the mode": (("127.0.0.1", 8081), {"mode": ["reverse:http://ollama:11434@8081"]}, False),
    "mitmproxy's own": (("127.0.0.1", 8080), {}, False),
    "another port": (("127.0.0.1", 8081), {"listen_host": "127.0.0.1", "listen_port": 8082}, True),
    "another address": (("127.0.0.2", 8081), {"listen_host": "127.0.0.1", "listen_port": 8081}, True),
}


@each_of("what", PORTS)
def test_metrics_are_not_on_the_port_of_the_gate(what: str) -> None:
    """Where ports are shared, both could be bound: keys would go to who shows metrics, and the page to strangers."""
    address, changed, fits = PORTS[what]
    options = Options(**({"mode": ["reverse:http://ollama:11434"]} | changed))
    with nullcontext() if fits else pytest.raises(SettingsError, match="gate's own"):
        check_apart(address, options)
