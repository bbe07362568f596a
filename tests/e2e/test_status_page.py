"""The status page in a real chromium, with the headers it is served with and answers made up here."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from ollama_auth.console.router import static_files
from ollama_auth.exchange import Exchange, Outcome
from ollama_auth.telemetry.status_server import POLICY
from tests.harness.base import BEARER, free_port
from tests.harness.browser import Page, chromium, tab
from tests.harness.gate import Gate
from tests.harness.markdown import LOGGING, names, tables
from tests.harness.upstream import Upstream
from tests.harness.wire import ask, chat

pytestmark = pytest.mark.browser

FILES = {name: content.decode() for name, (_, content) in static_files().items()}
PAGE, SCRIPT = FILES["index.html"], FILES["app.js"]
HOSTILE = "<img src=x onerror=alert(1)>"
NOTHING = "\N{EN DASH}"
NOW = 1764063600.0


def minute(i: int) -> dict[str, Any]:
    """A minute of an hour in which nobody asked at first, then many did."""
    wave = max(0.0, math.sin(i / 7) + math.sin(i / 3) / 2) if i > 8 else 0.0
    refused, failed = 9 if i == 30 else round(wave) % 2, 2 if i in (41, 42) else 0
    requests = max(round(wave * 24), failed)
    busy = requests > 0
    return {
        "time": NOW - 60 * (59 - i) - NOW % 60,
        "requests": requests + refused,
        "answered": requests - failed,
        "refused": refused,
        "failed": failed,
        "broken_off": 0,
        "prompt_tokens": round(wave * 3100),
        "completion_tokens": round(wave * 9700),
        "ttft_ms": [180 + wave * 90, 420 + wave * 900 + (i % 5) * 60] if busy else None,
        "duration_ms": [4200.0, 19000.0] if busy else None,
        "token_ms": [14 + wave * 4, 22 + wave * 11 + i % 3] if busy else None,
    }


def busy() -> dict[str, Any]:
    """What a gate says that has something to do."""
    flight = [
        ("7f0c2d9b11a4e6c3", "alice", "/api/chat", "llama3.2:latest", 73.4, 212.0, 1893, 26.1),
        ("d20114b6f1c0a982", "ci-runner", "/v1/chat/completions", "qwen3:32b", 21.8, 640.0, 402, 19.4),
        ("0b77aa0193fe2d11", "bob-laptop", "/v1/messages", "llama3.2:latest", 3.2, None, 0, None),
    ]
    keys = [
        ("ci-runner", 12_480, 211, 8_120_331, 22_004_118, 19.4, 2.0),
        ("alice", 1284, 3, 412_034, 1_893_220, 27.9, 1.0),
        ("(none)", 130, 130, 0, 0, None, 95.0),
        ("bob-laptop", 97, 0, 18_220, 61_230, 31.2, 3.0),
        ("reader", 31, 12, 0, 0, None, 2400.0),
    ]
    models = [
        ("qwen3:32b", 12_400, 8_101_998, 21_990_004, 19.2),
        ("llama3.2:latest", 1390, 431_502, 1_955_010, 28.4),
        ("nomic-embed-text:latest", 75, 17_205, 0, None),
    ]
    return {
        "version": "0.1.0",
        "started": NOW - 3 * 86400 - 4700,
        "now": NOW,
        "state": "open",
        "upstream": "http://127.0.0.1:11434",
        "ready": True,
        "connections": 14,
        "in_flight_total": len(flight),
        "in_flight": [
            dict(zip(("id", "key", "path", "model", "seconds", "ttft_ms", "tokens", "speed"), row, strict=True))
            | {"method": "POST", "stream": True}
            for row in flight
        ],
        "keys": [
            dict(
                zip(
                    ("key", "requests", "refused", "prompt_tokens", "completion_tokens", "speed", "last"),
                    row,
                    strict=True,
                )
            )
            | {"last": NOW - row[-1]}
            for row in keys
        ],
        "models": [
            dict(zip(("model", "requests", "prompt_tokens", "completion_tokens", "speed"), row, strict=True))
            for row in models
        ],
        "refusals": {"missing": 118, "requests_per_minute": 211, "unknown": 12, "scope": 11, "model": 4},
        "minutes": [minute(i) for i in range(60)],
    }


def quiet() -> dict[str, Any]:
    """What a gate says that was only just started."""
    nothing = {"requests": 0, "answered": 0, "refused": 0, "failed": 0, "broken_off": 0}
    nothing |= {"prompt_tokens": 0, "completion_tokens": 0}
    unknown = {"ttft_ms": None, "duration_ms": None, "token_ms": None}
    return busy() | {
        "started": NOW - 7,
        "ready": None,
        "connections": 0,
        "in_flight_total": 0,
        **{"in_flight": [], "keys": [], "models": [], "refusals": {}},
        "minutes": [{"time": NOW - NOW % 60 - 60 * (59 - i), **nothing, **unknown} for i in range(60)],
    }


class Stand:
    """A server of the page and of `data`, or of `raw` with `status` if there is any."""

    def __init__(self) -> None:
        self.data = busy()
        self.raw: bytes | None = None
        self.status = 200
        stand = self

        class Front(RequestHandler):
            def get(self, name: str = "index.html") -> None:
                self.set_header("Content-Security-Policy", POLICY)
                self.set_header("Content-Type", static_files()[name][0])
                self.finish(FILES[name])

        class Status(RequestHandler):
            def get(self) -> None:
                self.set_status(stand.status)
                self.finish(stand.data if stand.raw is None else stand.raw)

        routes = [("/", Front), ("/static/(.*)", Front), ("/console/overview", Status)]
        self._application = Application(routes, log_function=lambda _: None)
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        self._server = HTTPServer(self._application)
        self._server.listen(self.port, "127.0.0.1")

    async def stop(self) -> None:
        self._server.stop()
        await self._server.close_all_connections()


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    server = Stand()
    yield server
    await server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chromium(tmp_path_factory.mktemp("profile")) as listens:
        yield listens


@pytest.fixture
async def page(stand: Stand, browser: str) -> AsyncIterator[Page]:
    """A page that shows what `busy` says."""
    async with tab(browser) as opened:
        await opened.open(stand.url)
        await opened.until(SHOWN)
        yield opened


SHOWN = "document.readyState === 'complete' && !!document.querySelector('#keys tbody')?.rows.length"


async def rows(page: Page, table: str) -> list[list[str]]:
    """The cells of a table's body."""
    cells = f"[...document.querySelectorAll('#{table} tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    found: list[list[str]] = await page.evaluate(cells)
    return found


async def text(page: Page, selector: str) -> str:
    return str(await page.evaluate(f"document.querySelector('{selector}').textContent"))


def test_nothing_in_it_is_foreign() -> None:
    assert not re.search(r"(src|href)=\"(?!data:|static/)", PAGE)
    everything = "".join(FILES.values())
    assert not re.search(r"(inner|outer)HTML *=|insertAdjacent|document\.write|\beval\b|@import|url\(", everything)
    assert set(re.findall(r"https?://[^\"\s]+", everything)) == {"http://www.w3.org/2000/svg"}


def test_every_reason_of_the_log_is_put_in_words() -> None:
    refusals, others = tables(LOGGING, "Reasons")
    block = re.search(r"const REASONS = \{(.*?)\n\}", SCRIPT, re.S)
    assert block
    assert set(names(refusals)) == set(re.findall(r'^  "([^"]+)": "', block[1], re.M))
    for reason in (*names(refusals), *names(others)):
        outcome = Exchange("", status=400, reason=reason).outcome
        assert (outcome is Outcome.REFUSED) == (reason in names(refusals))


async def test_it_shows_what_the_gate_says(page: Page, stand: Stand) -> None:
    assert await text(page, "#gate") == "Open"
    assert await text(page, "#ollama") == "Ollama is ready"
    assert "http://127.0.0.1:11434 · up 3 d 1 h" in await text(page, "#about")
    assert (await rows(page, "flight"))[0] == [
        "alice", "llama3.2:latest", "1 min 13 s", "1,893", "26.1", "212 ms", "POST /api/chat"
    ]  # fmt: skip
    assert (await rows(page, "flight"))[2][3:6] == ["0", NOTHING, "waits"]
    assert (await rows(page, "keys"))[0] == ["ci-runner", "12,480", "211", "8.12M", "22M", "19.4", "just now"]
    assert await page.evaluate("document.querySelector('#keys tbody').rows[0].cells[4].title") == "22,004,118"
    assert (await rows(page, "models"))[1] == ["llama3.2:latest", "1,390", "432K", "1.96M", "28.4"]
    assert (await rows(page, "refusals"))[:2] == [
        ["The key is over its requests per minute", "requests_per_minute", "211"],
        ["No key was sent", "missing", "118"],
    ]
    assert await page.evaluate("document.title") == "(3) Ollama gate"
    assert not page.complaints
    assert all(url.startswith((stand.url, "data:")) for url in page.requests)


async def test_the_page_of_a_real_gate(browser: str, upstream: Upstream) -> None:
    """A request shows while it runs, and is counted when it has ended."""
    port = free_port()
    with Gate(upstream.url, "--set", f"ollama_metrics_listen=127.0.0.1:{port}") as gate:
        async with tab(browser) as page:
            await page.open(f"http://127.0.0.1:{port}/")
            await page.until("document.querySelector('#ollama').textContent === 'Ollama is ready'")
            upstream.hold()
            asking = asyncio.create_task(asyncio.to_thread(ask, gate.port, "POST", "/api/chat", BEARER, body=chat()))
            await page.until("document.querySelector('#flight tbody').rows[0].cells[0].textContent === 'default'")
            assert (await rows(page, "flight"))[0][6] == "POST /api/chat"
            upstream.go_on()
            assert (await asking).status == 200
            await asyncio.to_thread(ask, gate.port, "GET", "/api/tags")
            await page.until(
                "document.querySelector('#refusals tbody').rows[0].textContent === 'No key was sentmissing1'"
            )
            assert (await rows(page, "flight"))[0] == ["Nothing is under way. A request shows here while it runs."]
            assert ["default", "1"] in [row[:2] for row in await rows(page, "keys")]
            assert (await rows(page, "models"))[0][0] == "demo"
            assert not page.complaints


async def test_its_plots_have_axes_units_and_marks(page: Page) -> None:
    plots = await page.evaluate(
        "[...document.querySelectorAll('figure')].map(f => [f.querySelector('h2').textContent,"
        " [...f.querySelectorAll('svg text')].map(t => t.textContent), f.querySelectorAll('svg rect, svg path').length,"
        " f.querySelector('svg').getAttribute('aria-label')])"
    )
    assert [plot[0] for plot in plots] == [
        "Requests per minute", "Tokens per minute", "Time to first token", "Time between tokens"
    ]  # fmt: skip
    assert [plot[1][:3] for plot in plots] == [
        ["0", "10", "20"], ["0", "10,000", "20,000"], ["0 s", "1 s", "2 s"], ["0 ms", "20 ms", "40 ms"]
    ]  # fmt: skip
    for _, marks, shapes, label in plots:
        assert sum(bool(re.fullmatch(r"\d\d:\d0", mark)) for mark in marks) >= 2
        assert shapes >= 3
        assert "last hour: at most" in label


async def test_pointing_at_a_minute_tells_it_in_all_plots(page: Page) -> None:
    legends = "[...document.querySelectorAll('.legend')].map(l => l.textContent)"
    before = await page.evaluate(legends)
    await page.evaluate("document.querySelector('svg').focus()")
    for _ in range(30):
        await page.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    pointed = await page.evaluate(legends)
    assert "refused 9" in pointed[0]
    assert len({legend[:5] for legend in pointed}) == 1
    await page.send("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert await page.evaluate(legends) == before
    box = await page.evaluate("(b => [b.left, b.right, b.top])(document.querySelector('svg').getBoundingClientRect())")
    await page.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[1] - 4, y=box[2] + 40)
    assert "answered 29" in (await page.evaluate(legends))[0]


async def test_hostile_names_are_text(page: Page, stand: Stand) -> None:
    hostile: dict[str, Any] = busy()
    for row in (hostile["in_flight"][0], hostile["keys"][0], hostile["models"][0]):
        row |= {name: HOSTILE for name in ("id", "key", "model", "path", "method") if name in row}
    hostile |= {"upstream": HOSTILE, "state": HOSTILE, "refusals": {HOSTILE: 3, "__proto__": 2, "constructor": 1}}
    stand.data = hostile
    await page.evaluate("void poll()")
    await page.until(f"document.querySelector('#keys tbody').rows[0].textContent.startsWith({HOSTILE!r})")
    assert (await rows(page, "flight"))[0][1] == HOSTILE
    assert [row[0] for row in await rows(page, "refusals")] == [HOSTILE, "__proto__", "constructor"]
    assert HOSTILE in await text(page, "#about")
    assert await page.evaluate("document.querySelectorAll('img, [onerror]').length") == 0
    assert not page.complaints


async def test_it_updates_itself(page: Page, stand: Stand) -> None:
    await page.evaluate("globalThis.row = document.querySelector('#keys tbody').rows[0]")
    stand.data = busy() | {"state": "draining", "ready": False, "in_flight": [], "in_flight_total": 0}
    await page.until("document.querySelector('#gate').textContent.startsWith('Draining')")
    assert re.search(r"since \d\d:\d\d:\d\d$", await text(page, "#gate")), "it saw when that began"
    assert (await text(page, "#ollama")).startswith("Ollama does not answer")
    assert await rows(page, "flight") == [["Nothing is under way. A request shows here while it runs."]]
    assert await page.evaluate("document.querySelector('#keys tbody').rows[0] === row"), "a selection in it would stay"
    stand.data = busy()
    await page.until("document.querySelector('#flight tbody').rows.length === 3")


async def test_it_says_that_there_is_nothing(page: Page, stand: Stand) -> None:
    stand.data = quiet()
    await page.evaluate("void poll()")
    await page.until("document.querySelector('#ollama').textContent.startsWith('Ollama not asked yet')")
    for table in ("flight", "keys", "models", "refusals"):
        ((sentence,),) = await rows(page, table)
        assert sentence.endswith(".")
    drawn = await page.evaluate("[...document.querySelectorAll('svg')].map(s => s.textContent)")
    assert drawn[0] == "No requests in the last hour."
    assert drawn[3] == "No streamed answers in the last hour."
    assert not page.complaints


async def test_a_problem_is_shown_until_it_is_over(page: Page, stand: Stand) -> None:
    problem = "!document.querySelector('#problem').hidden && document.querySelector('#problem').textContent"
    await stand.stop()
    assert "The gate does not answer" in await page.until(problem)
    assert " old. " in await page.evaluate(problem)
    assert (await text(page, "#gate")).startswith("No answer")
    assert (await rows(page, "keys"))[1][0] == "alice", "what was known stays"
    stand.start()
    await page.until("document.querySelector('#problem').hidden")
    assert (await text(page, "#gate")).startswith("Open")


@pytest.mark.parametrize(
    ("status", "raw", "said"),
    [
        (503, b"", "status 503"),
        (200, b"<html>", "not valid JSON"),
        (200, b"{}", "does not understand"),
        (200, b"null", "does not understand"),
    ],
)
async def test_answers_that_are_none(page: Page, stand: Stand, status: int, raw: bytes, said: str) -> None:
    stand.status, stand.raw = status, raw
    await page.evaluate("void poll()")
    await page.until(f"document.querySelector('#problem').textContent.includes({said!r})")


async def test_it_rests_while_nobody_looks(page: Page, stand: Stand) -> None:
    """A hidden tab asks for nothing, and asks at once when it is shown again."""
    hide = "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}})"
    await page.evaluate(hide.format("true"))
    await page.until("!busy")
    asked = len(page.requests)
    await page.evaluate("new Promise(done => setTimeout(done, PERIOD + 200))")
    assert len(page.requests) == asked
    show = hide.format("false") + "; document.dispatchEvent(new Event('visibilitychange')); busy"
    assert await page.evaluate(show) is True


async def test_another_version_of_the_gate_brings_its_page(page: Page, stand: Stand) -> None:
    await page.evaluate("globalThis.old = true")
    stand.data = busy() | {"version": "9.9.9"}
    await page.evaluate("void poll()")
    await page.until(f"globalThis.old === undefined && {SHOWN}")
    assert "version 9.9.9" in await text(page, "#about")


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
async def test_it_fits_a_screen(page: Page, stand: Stand, width: int) -> None:
    """Nothing is wider than the page, whatever it is called; tables that are scroll by themselves."""
    await page.look(width)
    drawn = "document.querySelector('svg').viewBox.baseVal.width === document.querySelector('svg').clientWidth"
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    await page.until(f"innerWidth === {width} && {drawn}")
    assert await page.evaluate(fits)
    long: dict[str, Any] = busy() | {"upstream": "https://" + "u" * 300, "refusals": {"r" * 200: 10**15}}
    for row in (long["in_flight"][0], long["keys"][0], long["models"][0]):
        row |= {
            "key": "k" * 64,
            "model": "m" * 256,
            "path": "/p" * 128,
            "requests": 10**15,
            "completion_tokens": 10**15,
        }
    stand.data = long | {"in_flight": long["in_flight"] * 30, "keys": long["keys"] * 40}
    await page.evaluate("void poll()")
    await page.until("document.querySelector('#keys tbody').rows.length === 200")
    assert await page.evaluate(fits)


@pytest.mark.parametrize("dark", [False, True])
async def test_contrast(page: Page, dark: bool) -> None:
    """Text has at least 4.5 to 1 (WCAG 2.2, 1.4.3), marks of a plot 3 to 1 (1.4.11)."""
    await page.look(1280, dark=dark)
    names = ("page", "card", "over", "text", "soft", "one", "two", "three", "good")
    read = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
    light = {name: luminance(await page.evaluate(read.format(name))) for name in names}
    for back in ("page", "card", "over"):
        for front in ("text", "soft", "two", "three", "good"):
            assert contrast(light[front], light[back]) >= 4.5, (front, back)
    assert contrast(light["one"], light["card"]) >= 3


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
