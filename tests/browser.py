"""The system's Chromium, headless, for tests of what people look at."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, sync_playwright

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

# No connection but those of the page: a closed network would delay the browser's start.
SWITCHES = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def browser(*, is_offline: bool = False) -> Iterator[BrowserContext]:
    """A browser with an empty profile, in which pages can be opened; skips where there is none.

    Args:
        is_offline: Whether nothing but files can be reached.
    """
    if not CHROMIUM:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=SWITCHES, chromium_sandbox=os.geteuid() != 0
        )
        try:
            yield chromium.new_context(offline=is_offline, viewport={"width": 1280, "height": 900})
        finally:
            chromium.close()


def errors_of(context: BrowserContext) -> list[str]:
    """A list into which all that pages complain of is put from now on."""
    told: list[str] = []

    def listen(line: ConsoleMessage) -> None:
        if line.type == "error":
            told.append(line.text)

    context.on("console", listen)
    context.on("weberror", lambda error: told.append(str(error.error)))
    return told
