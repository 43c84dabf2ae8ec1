"""The page in a real Chromium: what a person sees and does."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from agentsched.daemon.dashboard.reporting import page_of
from agentsched.workloads.browsers import chromium, missing
from agentsched.workloads.simulate import Options
from agentsched.workloads.watched import Watched
from tests.daemon.keyed import ACME, two_tenants
from tests.daemon.serving import served

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.asyncio(loop_scope="module"),
]

CROWD = Options(
    traces=("gen:saga-swe",), kv_tokens=120_000, concurrency=60, programs=200, tool_cores=4, tool_memory_gb=8
)
ROWS = ".program"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all, since it takes seconds to start."""
    async with chromium() as started:
        yield started


@asynccontextmanager
async def opened(browser: Browser, url: str, *, width: int = 1440) -> AsyncIterator[Page]:
    """The page; afterwards, nothing may have gone wrong in it."""
    context = await browser.new_context(viewport={"width": width, "height": 900})
    page = await context.new_page()
    page.set_default_timeout(15_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    await page.goto(url)
    yield page
    await context.close()
    assert not [problem for problem in problems if "401" not in problem]


@pytest.fixture(scope="module")
def crowd() -> Watched:
    run = Watched(CROWD)
    run.run_to(100.0)
    return run


async def test_what_a_person_sees_and_does(browser: Browser, crowd: Watched) -> None:
    """In one visit, since a browser takes a while to start."""
    waiting = len(crowd.core.state.queue)
    async with crowd.served(still=True) as url, opened(browser, url) as page:
        await page.wait_for_selector(ROWS)
        assert await page.locator(".counts button").first.inner_text() == f"{waiting}\nno place"
        assert "edge" in await page.locator(".verdict").inner_text()
        assert await page.locator(".waiting li.wait").count() == 2
        first = page.locator(".waiting li.wait").first
        assert re.search(r"would (hold|overflow)", await first.inner_text())

        earliest = await page.locator(f"{ROWS} .who").first.get_attribute("title")
        assert await page.locator(ROWS).count() < 40, "rows out of sight do not exist"
        await page.locator(".lanes .list").evaluate("list => { list.scrollTop = 1e6; }")
        await page.wait_for_function("document.querySelectorAll('.program').length > 3")
        last = await page.locator(ROWS).last.inner_text()

        await page.keyboard.press("j")
        assert f"{await page.locator('.detail h2').inner_text()} of default" == earliest
        assert await page.locator(".aeg li").count() > 0
        await page.keyboard.press("Escape")
        assert await page.locator(".detail").count() == 0

        await page.keyboard.press("/")
        await page.keyboard.type(last.split()[0])
        assert await page.locator(ROWS).count() == 1
        await page.keyboard.press("Escape")

        await page.keyboard.press("f")
        await page.wait_for_function("document.querySelectorAll('.program .mark:not(.gateway)').length === 0")
        for _ in range(6):
            await page.keyboard.press("f")

        await page.keyboard.press("?")
        assert await page.locator(".help kbd").count() > 10
        await page.keyboard.press("Escape")

        theme = await page.evaluate("document.documentElement.dataset.theme")
        await page.keyboard.press("d")
        assert await page.evaluate("document.documentElement.dataset.theme") != theme

        await page.keyboard.press("Shift+ArrowLeft")
        assert await page.locator(".travelling").count() == 1
        assert "then" in await page.locator(".axis").inner_text()
        alive = sum(int(count) for count in await page.locator(".counts b").all_inner_texts())
        then_s = crowd.now() - 60.0
        rows = (await crowd.live.view(crowd.everything)).programs
        assert alive == sum(row.opened_s <= then_s < (row.ended_s or math.inf) for row in rows)
        await page.keyboard.press("l")
        assert await page.locator(".travelling").count() == 0


async def test_it_is_dark_or_light_as_the_system_is_until_somebody_says(
    browser: Browser, crowd: Watched
) -> None:
    async with crowd.served(still=True) as url, opened(browser, url) as page:
        await page.emulate_media(color_scheme="dark")
        await page.wait_for_selector(":root[data-theme=dark]")
        await page.emulate_media(color_scheme="light")
        await page.wait_for_selector(":root[data-theme=light]")
        await page.wait_for_selector(ROWS)
        await page.keyboard.press("d")
        await page.wait_for_selector(":root[data-theme=dark]")
        await page.reload()
        await page.wait_for_selector(":root[data-theme=dark]")


async def test_it_follows_what_happens_and_survives_a_loss(browser: Browser) -> None:
    async with served() as daemon, opened(browser, f"{daemon.url}/dashboard") as page:
        await page.wait_for_selector(".welcome")
        await daemon.chat("hello", program="first")
        await page.wait_for_selector(".program >> text=first")
        await page.context.set_offline(True)
        await page.context.set_offline(False)
        await daemon.chat("hello", program="second")
        await page.wait_for_selector(".program >> text=second")


async def test_it_asks_for_a_key_and_shows_what_that_opens(browser: Browser) -> None:
    async with served(declared=two_tenants()) as daemon:
        await daemon.chat("hello", program="ours", key=ACME)
        async with opened(browser, f"{daemon.url}/dashboard") as page:
            await page.wait_for_selector("input[type=password]")
            await page.keyboard.type("wrong")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("text=not known here")
            await page.fill("input[type=password]", ACME)
            await page.keyboard.press("Enter")
            await page.wait_for_selector(".program >> text=ours")
            assert "acme" in await page.locator(".policy").inner_text()


async def test_names_cannot_break_out_of_the_page(browser: Browser) -> None:
    name = "<img src=x onerror=alert(1)>"
    async with served() as daemon, opened(browser, f"{daemon.url}/dashboard") as page:
        await daemon.chat("hello", program=name)
        await page.wait_for_selector(".program b")
        assert await page.locator(".program b").get_attribute("title") is None
        assert await page.locator(".program .who").get_attribute("title") == f"{name} of default"
        assert await page.locator("img[src=x]").count() == 0


async def test_a_report_opens_from_a_file(browser: Browser, crowd: Watched, tmp_path: Path) -> None:
    view = await crowd.live.view(crowd.everything)
    path = tmp_path / "report.html"
    path.write_bytes(page_of(view, "a <title>"))
    crowd.live.rest()
    async with opened(browser, path.as_uri(), width=480) as page:
        await page.wait_for_selector(ROWS)
        assert await page.title() == "a <title>"
        assert await page.locator(".link").inner_text() == "recorded"
        sideways = await page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert sideways <= 0, "a narrow window needs no scrolling sideways"
