"""A real browser for tests of pages: Debian's Chromium driven by Playwright, its console watched.

The folder's conftest imports the fixtures, so a test there just asks for `page`. Without Chromium or Playwright such a
test is skipped with the reason; with M3PO_REQUIRE_BROWSER set it fails.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = "/usr/bin/chromium"
REQUIRE_VARIABLE = "M3PO_REQUIRE_BROWSER"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TIMEOUT_MS = 20_000


def _absent(reason: str) -> None:
    if os.environ.get(REQUIRE_VARIABLE):
        pytest.fail(f"{reason}; {REQUIRE_VARIABLE} is set, so it must be there")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium for the tests of one module: while it lives, its thread can't run another event loop."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _absent("the Python package playwright is not installed")
    chromium = CHROMIUM if Path(CHROMIUM).is_file() else shutil.which("chromium")
    if not chromium:
        _absent(f"there is no Chromium at {CHROMIUM} and none on the PATH")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A new page of 1280 x 900; `page.console_errors` fills with every error the page logs or throws.

    A violated content security policy is such an error. The test asserts on the list; a page of somebody else's may
    log errors that are not this project's.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(TIMEOUT_MS)
    opened = context.new_page()
    opened.console_errors = []
    opened.on("console", lambda message: message.type == "error" and opened.console_errors.append(message.text))
    opened.on("pageerror", lambda error: opened.console_errors.append(str(error)))
    yield opened
    context.close()
