"""Who wins, in a real browser: a quiet console, nothing over the edge of a phone, every text readable in the dark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from gipo_mc.report.report import build_report
from tests.evaluation.browser import DESKTOP, PHONE, browser_or_skip, complaints, open_browser, serious_faults, show
from tests.report.evaluations import evaluation, with_agreement

pytestmark = pytest.mark.browser
#: Lowest contrast (WCAG 2) of any text with the nearest ground that has a colour, and which text.
_CONTRAST = r"""
const linear = v => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
const numbers = colour => colour.match(/[\d.]+/g).map(Number);
const weights = [.2126, .7152, .0722];
const light = colour => numbers(colour).slice(0, 3).reduce((sum, v, i) => sum + weights[i] * linear(v), 0);
const clear = e => numbers(getComputedStyle(e).backgroundColor)[3] === 0;
let worst = [99, ''];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (e.closest('svg') || !own) continue;
  let ground = e;
  while (ground.parentElement && clear(ground)) ground = ground.parentElement;
  const [a, b] = [getComputedStyle(e).color, getComputedStyle(ground).backgroundColor].map(light);
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < worst[0]) worst = [ratio, e.className + ': ' + e.textContent.trim().slice(0, 60)];
}
return worst;
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page, with everything unfolded."""
    browser_or_skip()
    folder = with_agreement(evaluation(tmp_path_factory.mktemp("evaluation") / "e"))
    page = build_report([], folder / "report.html", evaluation=folder)
    with open_browser(folder) as opened:
        opened.get(page.as_uri())
        opened.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        yield opened


def test_the_console_is_quiet_and_texts_are_texts(driver: Any) -> None:
    show(driver, DESKTOP)
    assert driver.title == "e – evaluation report"
    assert driver.execute_script("return document.querySelectorAll('img, script, iframe').length") == 0
    assert "[[A]] {{ 7*7 }}" in driver.find_element("tag name", "body").text and not complaints(driver)


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_runs_over_the_edge(driver: Any, size: tuple[int, int]) -> None:
    show(driver, size)
    time.sleep(0.1)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    gaps = driver.execute_script(
        "return [...document.querySelectorAll('.bar')].map(bar =>"
        " [...bar.children].reduce((sum, each) => sum + each.getBoundingClientRect().width, 0) - bar.clientWidth)"
    )
    assert len(gaps) >= 6 and max(map(abs, gaps)) <= 1


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read_on_its_ground(driver: Any, dark: bool) -> None:
    show(driver, PHONE, dark=dark)
    worst = driver.execute_script(_CONTRAST)
    assert worst[0] >= 4.5, worst


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_no_serious_fault(driver: Any, size: tuple[int, int], dark: bool) -> None:
    show(driver, size, dark=dark)
    assert not serious_faults(driver)
