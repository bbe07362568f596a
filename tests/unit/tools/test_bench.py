"""What scripts/bench counts is right answers, from this machine alone."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET  # of a file we have just made
from pathlib import Path

import pytest

from scripts.tools.bench import figures
from scripts.tools.bench.figures import Figure, Goal
from scripts.tools.bench.load import Address, Client, Count, Token, WrongAnswerError, lateness
from scripts.tools.bench.plot import plot
from scripts.tools.bench.targets import HOST
from tests.harness.base import ROOT
from tests.harness.upstream import Scripted


def test_no_other_machine_is_measured() -> None:
    with pytest.raises(WrongAnswerError, match=r"192\.0\.2\.1 is not this machine"):
        Address("192.0.2.1", 80, "")


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WRONG = {
    "another status": b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nok",
    "too short": OK + b"o",
    "too long": OK + b"okay",
    "no length": b"HTTP/1.1 200 OK\r\n\r\nok",
    "broken chunks": CHUNKED + b"2\r\nokay\r\n",
    "chunks without an end": CHUNKED + b"2\r\nok\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
async def test_a_wrong_answer_is_no_figure(answer: bytes) -> None:
    upstream = Scripted().start(lambda line: (line.head(), line.send(answer)))
    at = Address(HOST, upstream.port, "")
    client = await Client.to(at, 200, Count())
    with pytest.raises(WrongAnswerError):
        await client.ask(at.request("GET", "/"))
    upstream.stop()


@pytest.mark.parametrize("answer", [OK + b"ok", CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"], ids=["sized", "chunked"])
async def test_a_right_answer(answer: bytes) -> None:
    upstream = Scripted().start(lambda line: (line.head(), line.send(answer)))
    at, count = Address(HOST, upstream.port, ""), Count()
    client = await Client.to(at, 200, count)
    await client.ask(at.request("GET", "/"))
    client.close()
    upstream.stop()
    assert count.bytes == 2


def test_the_percentiles() -> None:
    assert lateness([Token(0.0, float(ms)) for ms in range(1, 101)]) == (50.5, 99.0)


def test_a_ratio_of_what_is_added() -> None:
    """And none where what the other adds is lost in the noise."""
    row = {"direct": Figure(1, 1, 1), "Caddy": Figure(2, 2, 2), "ours": Figure(4, 4, 4)}
    goal = Goal("late", "Caddy", most=3.0, added=True)
    assert figures.ratio(goal, {"late": row}, "ours") == 3.0
    assert figures.ratio(goal, {"late": row | {"Caddy": Figure(1, 1, 1)}}, "ours") is None
    assert figures.ratio(goal, {}, "ours") is None


def test_plain_mitmdump_has_bounds_of_its_own() -> None:
    rates = {"bare": 100.0, "ours": 350.0, "ours plain": 310.0}
    names = list(rates)
    found = figures.goals({"requests/s": {name: Figure(rate, rate, rate) for name, rate in rates.items()}}, names)
    lines = [line.split() for line in found.splitlines()]
    assert [line[-5:] for line in lines] == [
        ["3.50", "at", "least", "4:", "no"],
        ["3.10", "at", "least", "3:", "yes"],
    ]


def test_the_plot_is_an_svg() -> None:
    root = ET.fromstring(plot({"a & b": {"direct": 1.0, "<ours>": 2.0}}, "here"))  # noqa: S314
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "a & b" in "".join(root.itertext())


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    """One row of it, with what is always there."""
    command = [sys.executable, str(ROOT / "scripts" / "tools"), "bench", "--quick", "--only", "requests"]
    command += ["--without", "caddy", "--without", "nginx", "--json", str(file := tmp_path / "figures.json")]
    command += ["--only", "http2"] * bool(shutil.which("h2load"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ours       requests/s, against bare's" in done.stdout
    rows = json.loads(file.read_text())["rows"]
    assert set(rows["requests/s"]) == {"direct", "bare", "ours"}
    assert set(rows.get("token late, 100 HTTP/2 streams, p50 ms", {"ours": 0})) - {"direct"} == {"ours"}
