"""A real Chromium for looking at pages: Debian's package, or what ``AGENTSCHED_CHROMIUM`` names."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.async_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--no-sandbox", "--disable-gpu")  # as root it has no sandbox of its own


def missing() -> str | None:
    """What lacks for ``chromium``, in words; None: nothing."""
    if find_spec("playwright") is None:
        return "the package playwright is not installed: pip install 'agentsched[bench]'"
    if _path() is None:
        return "there is no Chromium: apt-get install chromium, or name one in AGENTSCHED_CHROMIUM"
    return None


@asynccontextmanager
async def chromium(*options: str) -> AsyncIterator[Browser]:
    """A browser without a window. ``options``: further ones of its command line."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=_path(), args=[*OPTIONS, *options])
        try:
            yield browser
        finally:
            await browser.close()


def _path() -> str | None:
    stated = os.environ.get("AGENTSCHED_CHROMIUM")
    return stated or next((found for name in NAMES if (found := shutil.which(name))), None)
