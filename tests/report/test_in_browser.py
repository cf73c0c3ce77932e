"""The report and the page of the monitor in a real browser: a quiet console, nothing over the edge, runs hidden and
compared by a click, and no serious fault that axe-core knows of."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.monitor.follow import followers
from gipo_mc.monitor.server import MonitorServer
from gipo_mc.report.report import build_report
from tests.evaluation.browser import DESKTOP, PHONE, browser_or_skip, complaints, open_browser, serious_faults, show
from tests.monitor.folders import append, rows, run
from tests.report.conftest import Runs

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser_or_skip()
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> str:
    members = [runs["sft"], runs["reward"], runs["ppo"], runs["gi_ppo"]]
    return build_report(members, tmp_path_factory.mktemp("page") / "r.html").as_uri()


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """(folder of a run, address of the page that follows it)."""
    path = run(tmp_path_factory.mktemp("followed") / "gi")
    with MonitorServer(followers([path]), "127.0.0.1", 0, 0.2) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield path, server.url
        server.shutdown()


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_no_serious_fault(
    driver: Any, page: str, followed: tuple[Path, str], size: tuple[int, int], dark: bool
) -> None:
    for address in (page, followed[1]):
        show(driver, size, dark=dark)
        driver.get(address)
        assert not serious_faults(driver)


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_the_console_is_quiet_and_nothing_runs_over_the_edge(
    driver: Any, page: str, followed: tuple[Path, str], size: tuple[int, int]
) -> None:
    for address in (page, followed[1]):
        show(driver, size)
        driver.get(address)
        driver.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        time.sleep(0.3)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
        assert not complaints(driver)


def _shown(driver: Any, css: str) -> int:
    boxes = "[...document.querySelectorAll(arguments[0])].map(each => each.getBoundingClientRect())"
    return int(driver.execute_script(f"return {boxes}.filter(box => box.width > 0).length", css))


def _click(driver: Any, id: str) -> None:
    found = driver.find_element("id", id)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", found)
    found.click()


def test_runs_are_hidden_and_compared_by_a_click(driver: Any, page: str) -> None:
    show(driver, DESKTOP)
    driver.get(page)
    before = _shown(driver, ".of-2-0")
    assert before > 20 and _shown(driver, ".against-0") == 1 and _shown(driver, ".against-1") == 0
    _click(driver, "show-of-2-0")
    assert _shown(driver, ".of-2-0") == 0 and _shown(driver, ".of-2-1") > 20
    _click(driver, "show-of-2-0")
    assert _shown(driver, ".of-2-0") == before
    _click(driver, "part-2-against-1")
    assert _shown(driver, ".against-0") == 0 and _shown(driver, ".against-1") == 1


def test_on_paper_everything_is_open_and_light(driver: Any, page: str) -> None:
    show(driver, DESKTOP, dark=True, printed=True)
    driver.get(page)
    assert _shown(driver, "nav") == 0 and _shown(driver, "pre") >= 1
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_nothing_is_cut_off_on_a_sheet_of_paper(driver: Any, page: str) -> None:
    show(driver, (718, 1047), printed=True)  # A4 within the margins that Chromium prints
    driver.get(page)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 718


def test_the_page_follows_the_run_and_leaves_what_the_reader_opened(driver: Any, followed: tuple[Path, str]) -> None:
    path, address = followed
    show(driver, DESKTOP)
    driver.get(address)
    driver.execute_script("document.querySelectorAll('details')[1].open = true; window.kept = 1")
    opened = _shown(driver, "details[open]")
    append(path / "metrics.jsonl", rows(41, 50))
    deadline = time.monotonic() + 15
    # In one call, since the page renews what an element found before would be.
    while "step 50 of 80" not in (said := driver.execute_script("return document.querySelector('.pace').innerText")):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    assert driver.execute_script("return window.kept") == 1, "the page was not loaded again"
    assert _shown(driver, "details[open]") == opened and not complaints(driver)
