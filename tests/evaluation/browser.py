"""A headless Chromium for tests of pages, where this machine has one: `make test-browser` runs them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = (390, 844)
DESKTOP = (1280, 800)
_FAULTS = """
const done = arguments[0];
axe.run(document).then(found => done(found.violations.filter(each => ['serious', 'critical'].includes(each.impact))
  .map(each => `${each.impact} ${each.id}: ${each.nodes[0].html.slice(0, 200)}`)));
"""


def browser_or_skip() -> tuple[str, str]:
    """Paths of the browser and its driver. Skips the test, with a sentence, where something is missing."""
    pytest.importorskip("selenium", reason="needs selenium: make test-browser installs it")
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt install chromium chromium-driver")
    return browser, driver


@contextmanager
def open_browser(downloads: Path) -> Iterator[Any]:
    """A selenium driver with a profile of its own, whose downloads go to a folder."""
    browser, driver = browser_or_skip()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses root otherwise
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_script_timeout(120)
    try:
        opened.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        yield opened
    finally:
        opened.quit()


def show(driver: Any, size: tuple[int, int] = DESKTOP, *, dark: bool = False, printed: bool = False) -> None:
    """Give the page a size in pixels, the colours of the reader's wish, and the medium."""
    phone = size[0] < 700
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    medium = {"media": "print" if printed else "screen", "features": [scheme]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", medium)


def serious_faults(driver: Any) -> list[str]:
    """The serious and critical faults that axe-core finds on what is shown, everything unfolded. Skips the test where
    it is not there: `make test-browser` fetches it."""
    axe = os.environ.get("AXE", "")
    if not axe:
        pytest.skip("needs axe-core: make test-browser installs it, and names it in AXE")
    driver.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    driver.execute_script(Path(axe).read_text(encoding="utf-8"))
    found: list[str] = driver.execute_async_script(_FAULTS)
    return found


def complaints(driver: Any) -> list[str]:
    """What the console said since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]
