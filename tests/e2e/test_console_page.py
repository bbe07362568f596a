"""The console's page in a real chromium: with answers made up in tests/harness/console.py, and with a real gate."""

import asyncio
import csv
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_auth.console.api import ROWS
from ollama_auth.console.keys import FORM
from ollama_auth.console.router import STATIC, static_files
from ollama_auth.exchange import Exchange, Outcome
from tests.harness.base import BEARER, KEY, PATIENCE
from tests.harness.browser import Page, chromium, tab
from tests.harness.console import HOSTILE, Stand, key, keys, me, overview, quiet, state
from tests.harness.gate import Ready
from tests.harness.markdown import LOGGING, names, tables
from tests.harness.programs import tool
from tests.harness.upstream import Upstream
from tests.harness.wire import ask, chat

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FILES = {name: content.decode() for name, (_, content) in static_files().items()}
NOTHING = "\N{EN DASH}"
SHOTS = os.environ.get("TEST_SCREENSHOTS")
"""A folder that pictures of each view are put into."""
LOOKS = ((1440, False), (1440, True), (390, False), (390, True))
"""(width, whether it is dark)"""
VIEWS = ("overview", "keys", "requests", "models", "try", "me")


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    server = Stand()
    yield server
    await server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chromium(tmp_path_factory.mktemp("profile")) as listens:
        yield listens


@pytest.fixture(scope="module")
def kept() -> list[str]:
    """The tab that `page` uses for all tests: a new one would take a second. What it was told ends with each."""
    return []


@pytest.fixture
async def page(stand: Stand, browser: str, kept: list[str]) -> AsyncIterator[Page]:
    """A page that shows the overview."""
    async with tab(browser, kept) as opened:
        await opened.open(stand.url)
        await opened.until(SHOWN)
        yield opened
        await opened.open("about:blank")  # Or it would ask a stand that is gone.


SHOWN = "document.readyState === 'complete' && !!document.querySelector('[data-table=keys] tbody')?.rows.length"


async def sign_in(page: Page, url: str, secret: str, view: str = "overview") -> None:
    """Type a key as a person does."""
    await page.open(f"{url}#/me")
    await page.until("!!document.querySelector('#key')")
    await page.evaluate(f"document.querySelector('#key').value = {secret!r}")
    await page.evaluate("document.querySelector('.sign-in').requestSubmit()")
    await page.until("!!document.querySelector('#who button')")
    await go(page, view)


async def go(page: Page, view: str) -> None:
    await page.evaluate(f"location.hash = '#/{view}'")
    await page.until(f"document.querySelector('nav [aria-current]')?.hash === '#/{view.partition('?')[0]}'")


async def again(page: Page) -> None:
    """Have the page ask now."""
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


async def rows(page: Page, table: str) -> list[list[str]]:
    """The cells of a table's body."""
    cells = "[...document.querySelectorAll('[data-table={}] tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    found: list[list[str]] = await page.evaluate(cells.format(table))
    return found


async def text(page: Page, selector: str) -> str:
    return str(await page.evaluate(f"document.querySelector('{selector}').textContent"))


async def press(page: Page, words: str, inside: str = "body") -> None:
    """Press the button with these words."""
    found = f"[...document.querySelectorAll('{inside} button')].filter(b => b.textContent === {words!r}).at(-1)"
    await page.until(f"!!{found}")
    await page.evaluate(f"{found}.click()")


async def fill(page: Page, **fields: str) -> None:
    """Fill in the dialog that is open."""
    await page.until("!!document.querySelector('dialog[open] form')")
    for name, value in fields.items():
        await page.evaluate(f"document.querySelector('dialog[open] [name={name}]').value = {value!r}")


# What it is made of.


def test_nothing_in_it_is_foreign_and_all_of_it_is_small() -> None:
    everything = "".join(FILES.values())
    assert not re.search(r"(src|href)=\"(?!static/|#)", FILES["index.html"])
    assert not re.search(r"(inner|outer)HTML *=|insertAdjacent|document\.write\(|\beval\b|@import|url\(", everything)
    assert not re.search(r"\bstyle=|<script>|\bon\w+=", FILES["index.html"]), "its policy allows nothing inline"
    assert sum(map(len, (content for _, content in static_files().values()))) <= 96_000


def package(config: pytest.Config, name: str) -> Path | None:
    """The folder of a package of npm, which is kept for the next run; None where npm does not get it."""
    folder = config.cache.mkdir(name.partition("@")[0]) if config.cache else Path()
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", name]
    found = folder / "node_modules" / name.partition("@")[0]
    if not found.exists():
        subprocess.run(install, cwd=folder, capture_output=True, check=False, timeout=PATIENCE * 3)
    return found if found.exists() else None


def test_its_types_are_right(pytestconfig: pytest.Config) -> None:
    """By the compiler of TypeScript, where npm has one; else at least the syntax, by node."""
    node = tool("node")
    assert tool("npm")
    typescript, modules = package(pytestconfig, "typescript@5.9.3"), sorted(map(str, STATIC.glob("*.js")))
    types = str(STATIC / "types.d.ts")
    if typescript is None:
        for module in modules:
            subprocess.run([node, "--check", module], check=True, timeout=PATIENCE)
        return
    options = ["--strict", "--checkJs", "--allowJs", "--noEmit", "--target", "es2023", "--module", "esnext"]
    options += ["--skipLibCheck", "--incremental", "--tsBuildInfoFile", str(typescript / "checked")]
    libraries = ["--lib", "es2023,dom,dom.iterable,dom.asynciterable", "--moduleResolution", "bundler"]
    compiler = [node, str(typescript / "bin" / "tsc")]
    said = subprocess.run(
        [*compiler, *options, *libraries, *modules, types], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (0, "")


def test_the_page_has_words_for_reasons_of_the_log_alone() -> None:
    refusals, others = tables(LOGGING, "Reasons")
    for table, block in ((refusals, "REASONS"), (others, "FAILURES")):
        words = re.search(rf"const {block} = \{{(.*?)\n\}}", FILES["words.js"], re.S)
        assert words
        found = set(re.findall(r'^  "([^"]+)": "', words[1], re.M))
        assert found <= {*names(table), "upstream error"}, "a reason that there is no more"
    for reason in (*names(refusals), *names(others)):
        outcome = Exchange("", status=400, reason=reason).outcome
        assert (outcome is Outcome.REFUSED) == (reason in names(refusals))


# The overview.


async def test_it_is_painted_before_anything_was_answered(stand: Stand, browser: str) -> None:
    """Its frame needs the page alone: no file that comes after it holds the first paint up."""
    stand.speaks.clear()
    async with tab(browser) as page:
        await page.open(stand.url)
        await page.until("performance.getEntriesByName('first-contentful-paint').length")
        assert await page.evaluate("document.querySelectorAll('nav a').length") == 6
        blocking = "performance.getEntriesByType('resource').filter(r => r.renderBlockingStatus === 'blocking').length"
        assert await page.evaluate(blocking) == 0
        stand.speaks.set()
        await page.until(SHOWN)
        assert not page.complaints


async def test_it_shows_what_the_gate_says(page: Page, stand: Stand) -> None:
    assert await text(page, "#gate") == "Guarding"
    assert await text(page, "#ollama") == "Ollama is ready"
    assert "http://127.0.0.1:11434 · up 3 d 1 h" in await text(page, "#about")
    flight = await rows(page, "flight")
    assert flight[0][:6] == ["alice", "llama3.2", "streams", "1 min 13 s", "1,893", "26.1"]
    assert flight[1][2] == "stalled: no token for 1 min 52 s"
    assert flight[1][5] == "0"
    assert flight[2][2:6] == ["waits for Ollama", "3.2 s", "0", NOTHING]
    assert (await rows(page, "keys"))[0] == ["ci-runner", "12,480", "211", "4", "8.12M", "22M", "19.4"]
    assert (
        await page.evaluate("document.querySelector('[data-table=keys] tbody').rows[0].cells[5].title") == "22,004,118"
    )
    assert (await rows(page, "reasons"))[0][:3] == [
        "The key is over its requests per minuterequests_per_minute", "refused", "ci-runner",
    ]  # fmt: skip
    assert [row[1] for row in await rows(page, "held")] == ["192.0.2.9", "198.51.100.23"]
    tiles = await text(page, ".tiles")
    assert "26.1in the last 5 seconds" in tiles
    assert "1 request stalled" in tiles
    assert await page.evaluate("document.title") == "(3) Overview · Ollama gate"
    assert not page.complaints
    assert all(url.startswith((stand.url, "data:")) for url in page.requests)


async def test_its_plots_have_one_unit_a_scale_for_outliers_and_a_table(page: Page) -> None:
    plots = await page.evaluate(
        "[...document.querySelectorAll('figure')].map(f => [f.querySelector('h2').textContent,"
        " [...f.querySelectorAll('.plot text')].map(t => t.textContent), f.querySelector('.plot').ariaLabel])"
    )
    assert [plot[0] for plot in plots] == [
        "Requests per minute", "Tokens out per minute", "Tokens in per minute", "Time to first token",
        "Tokens per second of an answer", "Requests at once",
    ]  # fmt: skip
    ticks = {name: [mark for mark in marks if ":" not in mark] for name, marks, _ in plots}
    assert ticks["Tokens in per minute"] == ["0 k", "20 k", "40 k"]
    assert ticks["Time to first token"] == ["0.1 s", "1 s", "10 s", "100 s"], "one of 60 s flattens nothing"
    for _, marks, label in plots:
        assert sum(":" in mark for mark in marks) >= 2
        assert "at most" in label
    await page.evaluate("document.querySelector('figure details').open = true")
    await page.until("document.querySelector('figure tbody').rows.length === 60")
    cells = "[...document.querySelectorAll('figure tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    assert (await page.evaluate(cells))[30][2] == "9"


async def test_every_table_is_a_file_too(page: Page, stand: Stand, tmp_path: Path) -> None:
    """Raw figures, times in UTC, and no text that a spreadsheet would run."""
    stand.answers["requests"] = {"requests": [ended() | {"model": "a;=1+1", "key": "-1", "completion_tokens": 1234}]}
    stand.answers["models"] = {"now": state()["now"], "asked": state()["now"], "models": [loaded()]}
    stand.answers["usage"] = {"rows": [key("")["today"] | {"day": "2025-11-25", "model": "llama3.2", "speed": 28.1}]}
    stand.answers["me"] = me(**keys()[1] | {"admin": True})
    await sign_in(page, stand.url, "sk-ollama-test")
    without = (
        "[...document.querySelectorAll('table')].filter(t => ![...t.closest('section').querySelectorAll('button')]"
    )
    without += ".some(b => b.ariaLabel?.startsWith('CSV of '))).length"
    for view, count in (("overview", 11), ("keys", 1), ("requests", 1), ("models", 1), ("me", 1)):
        await go(page, view)
        await page.until(f"document.querySelectorAll('table').length === {count}")
        assert await page.evaluate(without) == 0, view
    await go(page, "overview")
    await page.until(SHOWN)
    await page.evaluate("document.querySelector('figure details').open = true")
    await page.until("document.querySelector('figure tbody').rows.length === 60")
    minutes = await downloaded(page, tmp_path, "requests-per-minute.csv", "CSV", "figure:first-child")
    assert minutes[0] == ["Time", "answered", "refused", "failed", "broken off"]
    assert minutes[31] == ["2025-11-25T09:11:00.000Z", "0", "9", "0", "0"]
    waiting = await downloaded(page, tmp_path, "under-way.csv", "CSV", "[data-table=flight]")
    assert waiting[1][:6] == ["alice", "llama3.2", "streams", "73.4", "1893", "26.1"]
    await go(page, "keys")
    await page.until("document.querySelectorAll('main tbody tr').length === 6")
    people = await downloaded(page, tmp_path, "keys.csv", "CSV")
    assert people[3][:7] == [
        "ci-runner", "active", "infer embed list", "qwen*", "concurrent_requests=2", "79450", "2026-03-01T00:00:00Z",
    ]  # fmt: skip
    await go(page, "requests")
    await page.until("!!document.querySelector('.link')")
    stand.answers["requests"] = {"requests": []}  # There are no older ones.
    listed = await downloaded(page, tmp_path, "requests.csv", "CSV")
    assert listed[1][:6] == ["2025-11-25T09:40:00.000Z", "'-1", "a;'=1+1", "200 answered", "5", "1234"]
    await page.evaluate("document.querySelector('.link').click()")
    assert await page.evaluate("location.hash") == "#/requests?number=1", "it has an address"
    alone = await downloaded(page, tmp_path, "request-1.csv", "CSV", "dialog")
    assert dict(zip(*alone, strict=True)).items() >= {"id": "a" * 16, "key": "'-1", "stripped": "authorization"}.items()
    assert not page.complaints


def ended() -> dict[str, Any]:
    """A request that has ended."""
    request = {"number": 1, "time": state()["now"], "ended": state()["now"], "id": "a" * 16, "client": "192.0.2.1"}
    request |= {"method": "POST", "path": "/api/chat", "class": "infer", "status": 200, "key": "alice", "model": "m"}
    request |= {"stripped": "authorization", "outcome": "answered", "reason": "", "estimated": False}
    request |= {"prompt_tokens": 5, "completion_tokens": 31, "ttft_ms": 200, "duration_ms": 3000}
    return request | {"generation_ms": 2800, "bytes_in": 80, "bytes_out": 4000}


def loaded() -> dict[str, Any]:
    """A model in memory."""
    model = {"name": "llama3.2:latest", "size": 2 * 10**9, "loaded": True, "memory": 3 * 10**9, "memory_gpu": 10**9}
    return model | {
        "until": "2025-11-25T09:45:00Z", "cloud": False, "requests": 3, "failed": 1, "ttft_ms": [212, 900], "speed": 28,
    }  # fmt: skip


async def test_pointing_at_a_minute_tells_it_in_all_plots(page: Page) -> None:
    legends = "[...document.querySelectorAll('.legend')].map(l => l.textContent)"
    before = await page.evaluate(legends)
    await page.evaluate("document.querySelector('.plot').focus()")
    for _ in range(30):
        await page.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    pointed = await page.evaluate(legends)
    assert "refused 9" in pointed[0]
    assert len({legend[:5] for legend in pointed}) == 1
    assert "refused 9" in await text(page, "#said"), "a screen reader hears it"
    await page.send("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert await page.evaluate(legends) == before
    box = await page.evaluate("(b => [b.right, b.top])(document.querySelector('.plot').getBoundingClientRect())")
    await page.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] - 4, y=box[1] + 40)
    assert "answered 29" in (await page.evaluate(legends))[0]


async def test_a_young_gate_fills_its_plots(page: Page, stand: Stand) -> None:
    stand.answers["overview"] = quiet() | {"buckets": overview()["buckets"], "first": overview()["buckets"][55]["time"]}
    await again(page)
    await page.until("!!document.querySelector('.plot .unknown')")
    assert await page.evaluate("document.querySelectorAll('.plot')[0].textContent.includes('nothing known')")


async def test_hostile_names_are_text(page: Page, stand: Stand) -> None:
    hostile = overview(upstream=HOSTILE, state=HOSTILE, state_since=0.0)
    hostile["in_flight"][0] |= dict.fromkeys(("id", "key", "model", "path", "method", "client"), HOSTILE)
    hostile["keys"][0]["key"] = hostile["models"][0]["model"] = HOSTILE
    hostile["reasons"] = [
        {"outcome": HOSTILE, "reason": reason, "requests": 1, "keys": [HOSTILE], "models": [HOSTILE]}
        for reason in (HOSTILE, "__proto__", "constructor")
    ]
    stand.answers["overview"] = hostile
    await again(page)
    await page.until(f"document.querySelector('[data-table=keys] tbody').rows[0].textContent.startsWith({HOSTILE!r})")
    assert (await rows(page, "flight"))[0][1] == HOSTILE
    assert [row[0] for row in await rows(page, "reasons")] == [HOSTILE, "__proto__", "constructor"]
    assert HOSTILE in await text(page, "#about")
    assert await page.evaluate("document.querySelectorAll('img, [onerror]').length") == 0
    assert not page.complaints


async def test_hostile_names_are_text_in_all_views(page: Page, stand: Stand) -> None:
    hostile = dict.fromkeys(("key", "model", "client", "path", "method", "class", "reason", "stripped"), HOSTILE)
    stand.answers["requests"] = {"requests": [ended() | hostile]}
    models = [loaded() | {"name": HOSTILE, "parameters": HOSTILE, "quantization": HOSTILE}]
    stand.answers["models"] = {"now": state()["now"], "asked": state()["now"], "models": models}
    stand.answers["usage"] = {"rows": [key("")["today"] | {"day": HOSTILE, "model": HOSTILE, "speed": 28.1}]}
    named = {"name": HOSTILE, "note": HOSTILE, "models": [HOSTILE]}
    stand.answers["me"] = me(**named)
    stand.answers["keys"]["keys"] = [key("") | named]
    stand.answers["keys"]["file"] = HOSTILE
    await sign_in(page, stand.url, "sk-ollama-test")
    for view in ("keys", "requests", "models", "try", "me"):
        await go(page, view)
        await page.until(f"document.querySelector('main').textContent.includes({HOSTILE!r})")
        if view == "keys":
            await press(page, "Revoke")
        if view == "requests":
            await page.evaluate("document.querySelector('.link').click()")
        if view in ("keys", "requests"):
            assert HOSTILE in await text(page, "dialog")
            await page.evaluate("document.querySelector('dialog').close()")
        assert await page.evaluate("document.querySelectorAll('img, [onerror]').length") == 0, view
    assert not page.complaints


async def test_it_updates_itself(page: Page, stand: Stand) -> None:
    await page.evaluate("globalThis.row = document.querySelector('[data-table=keys] tbody').rows[0]")
    stand.answers["overview"] = overview(state="draining", ready=False, in_flight=[], in_flight_total=0)
    await again(page)
    await page.until("document.querySelector('#gate').textContent.startsWith('Draining')")
    assert " since " in await text(page, "#gate")
    assert (await text(page, "#ollama")).startswith("Ollama does not answer since ")
    assert await rows(page, "flight") == [["Nothing is under way. A request shows here while it runs."]]
    kept = "document.querySelector('[data-table=keys] tbody').rows[0] === row"
    assert await page.evaluate(kept), "a selection in it would stay"
    stand.answers["overview"] = overview()
    await again(page)
    await page.until("document.querySelector('[data-table=flight] tbody').rows.length === 3")


async def test_it_says_that_there_is_nothing(page: Page, stand: Stand) -> None:
    stand.answers["overview"] = quiet()
    await again(page)
    await page.until("document.querySelector('#ollama').textContent.startsWith('Ollama not asked yet')")
    for table in ("flight", "keys", "models", "reasons"):
        ((sentence,),) = await rows(page, table)
        assert sentence.endswith(".")
    drawn = await page.evaluate("[...document.querySelectorAll('.plot')].map(s => s.textContent)")
    assert drawn[0] == "Nothing in this time."
    assert not page.complaints


PROBLEM = "!document.querySelector('#problem').hidden && document.querySelector('#problem').textContent"


async def test_a_problem_is_shown_until_it_is_over(page: Page, stand: Stand) -> None:
    await stand.stop()
    await again(page)
    assert "The gate does not answer" in await page.until(PROBLEM)
    assert " old. " in await page.evaluate(PROBLEM)
    assert (await text(page, "#gate")).startswith("No answer")
    assert (await rows(page, "keys"))[1][0] == "alice", "what was known stays"
    stand.start()
    await again(page)
    await page.until("document.querySelector('#problem').hidden")
    assert await text(page, "#gate") == "Guarding"


async def test_answers_that_are_none(page: Page, stand: Stand) -> None:
    wrong = ((503, b"", "status 503"), (200, b"<html>", "not valid JSON"), (200, b"{}", "does not understand"))
    for stand.status, stand.raw, said in wrong:
        await again(page)
        await page.until(f"document.querySelector('#problem').textContent.includes({said!r})")


async def test_it_rests_while_nobody_looks(page: Page, stand: Stand) -> None:
    """A hidden tab asks for nothing, and asks at once when it is shown again."""
    hide = "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}})"
    await page.evaluate(hide.format("true"))
    await asyncio.sleep(0.3)  # What was asked for is answered.
    asked = len(stand.sent)
    await again(page)
    await page.evaluate("new Promise(done => setTimeout(done, 2300))")
    assert len(stand.sent) == asked
    await page.evaluate(hide.format("false") + "; document.dispatchEvent(new Event('visibilitychange'))")
    while len(stand.sent) == asked:
        await asyncio.sleep(0.02)


async def test_another_version_of_the_gate_brings_its_page(page: Page, stand: Stand) -> None:
    await page.evaluate("globalThis.old = true")
    stand.answers["overview"] = overview(version="9.9.9")
    await again(page)
    await page.until(f"globalThis.old === undefined && {SHOWN}")
    await page.until("document.querySelector('#about').textContent.includes('version 9.9.9')")


# How it looks.


async def test_it_fits_a_screen(page: Page, stand: Stand) -> None:
    """Nothing is wider than the page, whatever it is called; tables that are scroll by themselves."""
    await fits_all(page)
    long = overview(upstream="https://" + "u" * 300)
    long["in_flight"][0] |= {"key": "k" * 64, "model": "m" * 256, "path": "/p" * 128}
    long["keys"][0] |= {"key": "k" * 64, "requests": 10**15, "completion_tokens": 10**15}
    long["models"][0] |= {"model": "m" * 256}
    long["reasons"][0] |= {"reason": "r" * 200, "requests": 10**15}
    stand.answers["overview"] = long | {"in_flight": long["in_flight"] * 30, "keys": long["keys"] * 40}
    await again(page)
    await page.until("document.querySelector('[data-table=keys] tbody').rows.length === 200")
    await fits_all(page)


async def fits_all(page: Page) -> None:
    drawn = "document.querySelector('.plot').viewBox.baseVal.width === document.querySelector('.plot').clientWidth"
    for width in (360, 768, 1280, 1920):
        await page.look(width)
        await page.until(f"innerWidth === {width} && {drawn}")
        root = "document.documentElement"
        assert await page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), width
        tiles = await page.evaluate("[...document.querySelectorAll('.tiles > div')].map(t => t.offsetTop)")
        assert len(set(tiles)) == (1 if width > 700 else 3), "no tile is left over"


async def test_contrast(page: Page) -> None:
    """Text has at least 4.5 to 1 (WCAG 2.2, 1.4.3), marks of a plot 3 to 1 (1.4.11); light and dark."""
    backs, texts = ("page", "card", "over"), ("text", "soft", "refused", "failed", "good")
    marks = ("answered", "held", "broken", "out", "in", "wait", "pace", "field")
    names = [*backs, *texts, *marks]
    read = f"{names}.map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
    for dark in (False, True):
        await page.look(1280, dark=dark)
        light = dict(zip(names, map(luminance, await page.evaluate(read)), strict=True))
        for back in backs:
            for front in texts:
                assert contrast(light[front], light[back]) >= 4.5, (front, back)
        for mark in marks:
            assert contrast(light[mark], light["card"]) >= 3, mark


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


async def test_numbers_follow_the_browser(stand: Stand, browser: str) -> None:
    for language, figure, long in (("de", "12.480", "1.893"), ("fr", "12\u202f480", "1\u202f893")):
        async with tab(browser) as page:
            await page.send("Emulation.setLocaleOverride", locale=language)
            await page.send("Emulation.setUserAgentOverride", userAgent="test", acceptLanguage=language)
            await page.open(stand.url)
            await page.until(SHOWN)
            assert (await rows(page, "keys"))[0][1] == figure
            assert (await rows(page, "flight"))[0][4] == long
            assert "0,1 s" in await text(page, "figure:nth-of-type(4) .plot")


async def test_forced_colours_leave_the_legend(page: Page) -> None:
    await page.send("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
    fills = "[...document.querySelectorAll('figure .swatch rect')].slice(0, 4).map(r => getComputedStyle(r).fill)"
    assert len(set(await page.evaluate(fills))) == 4


@pytest.fixture
def axe(pytestconfig: pytest.Config) -> str:
    assert tool("npm")
    found = package(pytestconfig, "axe-core@4.11.0")
    if found is None:
        pytest.skip("npm has no axe-core here")
    return (found / "axe.min.js").read_text()


async def test_nothing_stands_in_the_way_of_anybody(page: Page, stand: Stand, axe: str) -> None:
    """No finding of axe in any view, and in what opens above it; light and dark, on a phone and on a desk."""
    run = "axe.run({resultTypes: ['violations']}).then(r => r.violations.map(v => [v.id, v.nodes[0].html]))"
    stand.answers["requests"] = {"requests": [ended()]}
    stand.answers["models"] = {"now": state()["now"], "asked": state()["now"], "models": [loaded()]}
    used = key("")["today"] | {"day": "2025-11-25", "model": "llama3.2", "speed": 28.1}
    stand.answers["usage"] = {"rows": [used]}
    stand.answers["me"] = me(**keys()[1] | {"admin": True})
    await page.evaluate(axe)
    await go(page, "keys")
    assert await page.evaluate(run) == [], "the question for a key"
    await sign_in(page, stand.url, "sk-ollama-test")
    await page.evaluate(axe)
    filled = "document.querySelectorAll('main tbody tr:not(.empty)').length > 0 || !!document.querySelector('.try')"
    for number, view in enumerate(VIEWS):
        await go(page, view)
        await page.until(filled)
        for width, dark in LOOKS if SHOTS else ():
            await page.look(width, dark=dark)
            keep(f"{view}-{width}-{'dark' if dark else 'light'}", await page.screenshot())
        width, dark = LOOKS[3 * (number % 2)]
        await page.look(width, dark=dark)
        assert await page.evaluate(run) == [], (view, width, dark)
    await page.look(1440)
    await go(page, "keys")
    await press(page, "Add a key")
    assert await page.evaluate(run) == [], "a dialog"
    await page.evaluate("document.querySelector('dialog').close()")
    await go(page, "requests")
    await page.until(filled)
    await page.evaluate("document.querySelector('.link').click()")
    assert await page.evaluate(run) == [], "a request in detail"
    assert not page.complaints


def keep(name: str, picture: bytes) -> None:
    """Keep a picture, if that is wanted."""
    if SHOTS:
        (folder := Path(SHOTS)).mkdir(parents=True, exist_ok=True)
        folder.joinpath(f"{name}.png").write_bytes(picture)


# Signing in.


async def test_the_key_stays_in_the_tab(page: Page, stand: Stand, browser: str) -> None:
    """It is sent as Authorization and in no other way, kept in sessionStorage, and forgotten on signing out."""
    await sign_in(page, stand.url, " sk-ollama-test ")
    await page.until("document.querySelector('#who span').textContent === 'default'")
    assert await page.evaluate("[document.cookie, localStorage.length, JSON.stringify(sessionStorage)]") == [
        "", 0, '{"gate-key":"sk-ollama-test"}',
    ]  # fmt: skip
    assert not [url for url in page.requests if "sk-ollama" in url]
    assert stand.sent[-1][2] == "Bearer sk-ollama-test"
    assert {path for _, path, key, _ in stand.sent if not key} == {"overview"}, "the question for a key asks nothing"
    await page.send("Page.reload")
    await page.until("document.querySelector('#who span')?.textContent === 'default'")
    await press(page, "Sign out")
    assert await page.evaluate("sessionStorage.length") == 0
    stand.status = 401
    async with tab(browser) as other:
        await other.open(stand.url)
        await other.until("!!document.querySelector('#key')")
        stand.raw = b'{"error": "the key is not known here"}'
        await other.evaluate("document.querySelector('#key').value = 'wrong'")
        await other.evaluate("document.querySelector('.sign-in').requestSubmit()")
        await other.until("document.querySelector('.sign-in .problem').textContent === 'the key is not known here'")
        assert await other.evaluate("sessionStorage.length") == 0


async def test_views_have_addresses_and_a_plain_key_has_its_own(page: Page, stand: Stand) -> None:
    stand.answers["me"] = me(**key("alice"))
    await sign_in(page, stand.url, "sk-ollama-plain", "me")
    offered = "[...document.querySelectorAll('nav a:not([hidden])')].map(a => a.textContent)"
    assert await page.evaluate(offered) == ["Requests", "Models", "Try it", "My key"]
    await page.until("document.querySelector('.me').textContent.includes('alice')")
    await page.evaluate("location.hash = '#/keys'")
    await page.until("location.hash === '#/me'")
    await go(page, "requests?outcome=failed")
    assert await page.evaluate("document.querySelector('[name=outcome]').value") == "failed"
    stand.answers["requests"] = {"requests": [ended()]}
    await go(page, "requests?outcome=failed&number=1")
    await page.until("document.querySelector('dialog')?.textContent.includes('A request')")
    assert "a" * 16 in await text(page, "dialog")
    await press(page, "Close", "dialog")
    await page.until("location.hash === '#/requests?outcome=failed'")


async def test_the_form_of_a_key_is_that_of_its_fields(page: Page, stand: Stand) -> None:
    """A field that the page has never heard of is asked for and shown, and what was not changed is not sent."""
    field = FORM[-1] | {"column": False}
    colour = field | {"name": "colour", "label": "Colour"}
    rooms = field | {"name": "rooms", "label": "Rooms", "kind": "words"}
    days = {"name": "days", "label": "Days", "kind": "choices", "choices": {"mon": "Monday", "tue": "Tuesday"}}
    stand.answers["me"] = me(fields=[*FORM, colour, rooms, field | days | {"default": "every day"}])
    stand.answers["keys"]["keys"][2] |= {"colour": "dark red", "rooms": ["a", "b"]}
    await sign_in(page, stand.url, "sk-ollama-test", "keys")
    await page.until("document.body.innerText.includes('Colour dark red')")
    assert (await rows(page, "keys"))[2][4] == "2 at once100%Colour dark redRooms a b"
    await act(page, "ci-runner", "Edit")
    await fill(page, models=" a,  b* ", concurrent_requests="", tokens_per_day="7", colour="blue", rooms="b")
    await page.evaluate("document.querySelector('dialog [value=infer]').click()")
    await press(page, "Save", "dialog[open]")
    await page.until("!document.querySelector('dialog')")
    method, path, _, body = next(one for one in stand.sent[::-1] if one[3])
    assert (method, path) == ("PATCH", "keys/ci-runner")
    assert body == {
        "scopes": ["embed", "list"], "models": ["a", "b*"], "concurrent_requests": None, "tokens_per_day": 7,
        "colour": "blue", "rooms": ["b"],
    }  # fmt: skip
    stand.answers["keys/ci-runner"] = 400
    await act(page, "ci-runner", "Edit")
    await page.evaluate("document.querySelectorAll('dialog [name=scopes]:checked').forEach(box => box.click())")
    await page.evaluate("document.querySelector('dialog [value=tue]').click()")
    await press(page, "Save", "dialog[open]")
    await page.until("document.querySelector('dialog .problem').textContent === 'this key may not'")
    assert stand.sent[-1][3] == {"scopes": [], "days": ["tue"]}
    assert not [one for one in page.complaints if "400" not in one]


async def test_an_administrator_who_is_none_any_more(page: Page, stand: Stand) -> None:
    """The page asks who it is, and shows what is left."""
    await sign_in(page, stand.url, "sk-ollama-test", "keys")
    stand.answers |= {"keys": 403, "me": me(**key("alice", scopes=["list"]))}
    await again(page)
    await page.until("location.hash === '#/me'")
    await page.until("document.querySelector('.me').textContent.includes('alice')")
    offered = "[...document.querySelectorAll('nav a:not([hidden])')].map(a => a.textContent)"
    assert await page.evaluate(offered) == ["Requests", "Models", "My key"]
    assert await page.evaluate("document.querySelector('#problem').hidden")


# With a real gate.


async def test_a_persons_walk(browser: str, upstream: Upstream, tmp_path: Path) -> None:
    """From nothing to five people with keys: one of them over a limit, one paused, one revoked, and a month as CSV."""
    (file := tmp_path / "keys.toml").write_text("# People of the lab.\n")
    file.chmod(0o600)
    options = ("--set", f"ollama_keys_file={file}", "--set", "ollama_access_log=-")
    with Ready(upstream.url, *options) as gate:
        async with tab(browser) as page:
            url = f"http://127.0.0.1:{gate.watch}/"
            await page.look(1440)
            await sign_in(page, url, KEY, "keys")
            made = {}
            for name in ("anna", "bert", "cora", "dora", "emil"):
                await press(page, "Add a key")
                await fill(page, name=name, note=f"{name}'s laptop", requests_per_minute="1" if name == "bert" else "")
                await press(page, "Add", "dialog[open]")
                made[name] = str(await page.until("document.querySelector('dialog[open] pre')?.textContent"))
                await press(page, "I have it", "dialog[open]")
                await page.until("!document.querySelector('dialog')")
            assert len(await rows(page, "keys")) == 6
            for name, secret in made.items():
                body, field = chat(), f"Authorization: Bearer {secret}"
                done = await asyncio.to_thread(ask, gate.port, "POST", "/api/chat", field, body=body)
                assert done.status == 200, name
            over = f"Authorization: Bearer {made['bert']}"
            assert (await asyncio.to_thread(ask, gate.port, "POST", "/api/chat", over, body=chat())).status == 429
            await act(page, "cora", "Pause", "Pause")
            await page.until("document.body.innerText.includes('paused')")
            paused = f"Authorization: Bearer {made['cora']}"
            assert (await asyncio.to_thread(ask, gate.port, "GET", "/api/tags", paused)).status == 401
            await act(page, "dora", "Revoke", "Revoke")
            await page.until("document.querySelectorAll('[data-table=keys] tbody tr').length === 5")
            await act(page, "cora", "Resume")
            await page.until("!document.body.innerText.includes('paused')")
            assert (await asyncio.to_thread(ask, gate.port, "GET", "/api/tags", paused)).status == 200
            await act(page, "anna", "Edit")
            await fill(page, tokens_per_day="250000", expires="90d")
            await press(page, "Save", "dialog[open]")
            await page.until("document.body.innerText.includes('250K tokens/day')")
            await act(page, "emil", "Rotate", "Rotate")
            newer = str(await page.until("document.querySelector('dialog[open] pre')?.textContent"))
            assert newer != made["emil"]
            await press(page, "I have it", "dialog[open]")
            await go(page, "overview")
            await page.until("document.body.innerText.includes('The key is over its requests per minute')")
            await go(page, "requests?key=bert")
            await page.until("document.querySelectorAll('[data-table=requests] tbody tr').length === 2")
            assert sorted(row[3] for row in await rows(page, "requests")) == ["200 answered", "429 requests_per_minute"]
            await go(page, "models")
            await page.until("document.body.innerText.includes('demo:latest')")
            await page.evaluate("document.querySelector('[aria-label=\"Unload demo:latest\"]').click()")
            await asyncio.to_thread(gate.find, '"path":"/api/generate"')
            await go(page, "try?model=demo")
            await page.evaluate("document.querySelector('textarea').value = 'hello there'")
            await page.evaluate("document.querySelector('.prompt').requestSubmit()")
            await page.until(
                "document.querySelector('.bubble.assistant')?.textContent.includes('all the way and back')"
            )
            assert "Tokens/s" in await text(page, ".figures")
            assert "Why is the sky" not in await text(page, ".code")
            await go(page, "keys")
            await press(page, "Usage as CSV")
            month = str(await page.evaluate("document.querySelector('dialog [name=of]').value"))
            assert re.fullmatch(r"20\d\d-\d\d", month), "this month is chosen"
            await page.evaluate("document.querySelector('dialog [value=model]').click()")
            usage = await downloaded(page, tmp_path, f"usage-{month}.csv", "Download")
            assert usage[0][:6] == ["day", "key", "requests", "answered", "refused", "failed"]
            assert [row[1:5] for row in usage if row[1] == "bert"] == [["bert", "2", "1", "1"]]
            assert {row[0][:7] for row in usage[1:]} == {month}
            assert {"anna", "bert", "cora", "dora", "emil"} <= {row[1] for row in usage}, "also who was revoked"
            await press(page, "Sign out")
            await sign_in(page, url, made["anna"], "me")
            await page.until("document.querySelectorAll('[data-table=mine] tbody tr:not(.empty)').length")
            await press(page, "Usage as CSV")
            await page.evaluate("document.querySelector('dialog [name=of]').value = ''")
            own = await downloaded(page, tmp_path, "usage-30-days.csv", "Download")
            assert own[0][:4] == ["day", "model", "requests", "answered"]
            assert [row[1:4] for row in own[1:]] == [["demo", "1", "1"]]
            assert not [one for one in page.complaints if "429" not in one and "401" not in one]
    assert file.read_text().startswith("# People of the lab.\n")


async def downloaded(page: Page, folder: Path, name: str, button: str, inside: str = "body") -> list[list[str]]:
    """Press a button that saves a table, and read the file."""
    await page.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    await press(page, button, inside)
    for _ in range(int(PATIENCE / 0.02)):
        if (file := folder / name).exists() and (content := file.read_text("utf-8-sig")):  # It is empty at first.
            return list(csv.reader(content.splitlines()))
        await asyncio.sleep(0.02)
    raise AssertionError(f"there is no {name}")


async def act(page: Page, name: str, choice: str, verb: str = "") -> None:
    """Choose from the menu of a key, and confirm it if there is a word for that."""
    menu = f"[...document.querySelectorAll('.menu')].find(m => m.querySelector('summary').ariaLabel.endsWith({name!r}))"
    await page.until(f"!!{menu}")
    await page.evaluate(f"[...{menu}.querySelectorAll('button')].find(b => b.textContent === {choice!r}).click()")
    if not verb:
        return
    await fill(page)
    await press(page, verb, "dialog[open]")
    await page.until("!document.querySelector('dialog[open] form .primary:disabled, dialog[open] .danger')")


async def test_requests_are_shown_live(browser: str, upstream: Upstream) -> None:
    with Ready(upstream.url) as gate:
        async with tab(browser) as page:
            await sign_in(page, f"http://127.0.0.1:{gate.watch}/", KEY, "requests?live=1")
            await page.until("document.querySelector('[aria-pressed=true]')?.textContent === 'Live'")
            await asyncio.sleep(0.5)
            await asyncio.to_thread(ask, gate.port, "POST", "/api/chat", BEARER, body=chat())
            await page.until("!!document.querySelector('[data-table=requests] tbody tr:not(.empty)')")
            assert (await rows(page, "requests"))[0][1:4] == ["default", "demo", "200 answered"]


async def test_a_page_of_another_origin_gets_nothing(browser: str, upstream: Upstream) -> None:
    """Its script knows a key, and may neither read nor change anything with it; nor may it frame the page."""
    with Ready(upstream.url) as gate:
        async with tab(browser) as page:
            await page.open(upstream.url)  # Its pages have no policy that would hold them back.
            await page.until("document.body?.innerText.includes('running')")
            target = f"http://127.0.0.1:{gate.watch}/"
            paths = {row.pattern.replace("(?P<name>[^/]+)", "default").lstrip("/") for row in ROWS}
            tried = [[m, target + path] for m in ("GET", "HEAD", "POST", "PATCH", "DELETE") for path in sorted(paths)]
            attempt = (
                f"Promise.all({tried}.map(([method, url]) => fetch(url, {{method, %s}})"
                ".then(answer => answer.type + answer.status, error => error.name)))"
            )
            with_key = await page.evaluate(attempt % f"headers: {{Authorization: 'Bearer {KEY}'}}")
            assert with_key == ["TypeError"] * len(tried)
            assert not [line for line in gate.lines if " /console/" in line], "nothing was asked with the key"
            simple = set(await page.evaluate(attempt % "mode: 'no-cors', credentials: 'include'"))
            assert simple <= {"opaque0", "TypeError"}, "nothing can be read"
            gate.find(" POST /console/")
            assert not [line for line in gate.lines if " /console/" in line and " 401 " not in line]
