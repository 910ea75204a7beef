"""A real browser for the tests: headless Chromium, driven by Playwright."""

import os
import platform
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Page, async_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_INSTALLED = Path(__file__).parent.parent / "node_modules" / ".chromium"
_MILLISECONDS = 10_000


def chromium() -> tuple[str, dict[str, str]]:
    """The browser that ``make test`` unpacks, and the variables that it needs; else the system's own."""
    program = _INSTALLED / "chromium"
    if program.exists() and platform.machine() == "x86_64":
        libraries = f"{_INSTALLED}/al2023/lib"
        return str(program), {"LD_LIBRARY_PATH": libraries, "FONTCONFIG_FILE": f"{_INSTALLED}/fonts.conf"}
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found is not None, "there is no Chromium: make test unpacks one"
    return found, {}


@asynccontextmanager
async def browsing() -> AsyncIterator[Page]:
    """A page of a new browser, whose waits are bounded, and which the test fails for what it complains of."""
    program, variables = chromium()
    complaints: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=FLAGS, env={**os.environ, **variables}
        )
        try:
            page = await browser.new_page()
            page.set_default_timeout(_MILLISECONDS)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
            yield page
        finally:
            await browser.close()
    assert not complaints, complaints
