"""The page in a real browser: keys and clicks, reload, download, import; texts that would break it."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.evaluation.people.ballot import PLEASE
from gipo_mc.evaluation.people.key import Key
from gipo_mc.evaluation.people.page import Written
from gipo_mc.evaluation.people.votes import read_votes
from gipo_mc.tools.evaluate.command import main
from tests.evaluation.browser import DESKTOP, PHONE, browser_or_skip, complaints, open_browser, serious_faults, show
from tests.evaluation.people.folders import data_of, page, pair, write_pairs

pytestmark = pytest.mark.browser
#: A press within 0.3 s of the last belongs to the pair before.
REST = 0.31
LONG = "A sentence of some words. " * 800
NASTY = {
    "ours": "</script><img src=x onerror=\"document.title='bad'\"> [[A]] {{ 7*7 }} "
    "\u202egnp.exe \x1b[31m\x00 \ud800 end",
    "theirs": "x" * 3000 + " \u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd (abc) 123\n" + LONG,
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser_or_skip()
    with open_browser(tmp_path_factory.mktemp("downloads")) as opened:
        yield opened


@pytest.fixture
def made(tmp_path: Path) -> tuple[Written, Key]:
    """Six pairs, one of them twice, one attention pair."""
    return page(write_pairs(tmp_path / "e", [pair(number) for number in range(7)]), pairs=6)


def _open(driver: Any, written: Written, name: str = "") -> None:
    driver.get(written.path.as_uri())
    if name:
        _type_name(driver, name)


def _type_name(driver: Any, name: str) -> None:
    field = driver.find_element("id", "name")
    field.clear()
    field.send_keys(f"{name}\n")
    time.sleep(REST)


def _press(driver: Any, keys: str, rest: float = REST) -> None:
    for key in keys:
        driver.find_element("tag name", "body").send_keys(key)
        time.sleep(rest)


def _click(driver: Any, what: str) -> None:
    driver.find_element("css selector", what).click()
    time.sleep(REST)


def _at(driver: Any) -> str:
    return driver.find_element("id", "count").text


def _pressed(driver: Any) -> list[str]:
    found = driver.find_elements("css selector", '[aria-pressed="true"]')
    return [each.get_attribute("data-vote") for each in found]


def _download(driver: Any, folder: Path, button: str) -> dict[str, Any]:
    """Press the button and read what arrives in a folder of its own."""
    folder.mkdir()
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    driver.execute_script("document.getElementById('guide').open = true")
    driver.find_element("id", button).click()
    end = time.monotonic() + 10
    while not (files := list(folder.glob("*.json"))):
        assert time.monotonic() < end, "nothing was downloaded"
        time.sleep(0.05)
    time.sleep(0.05)
    return json.loads(files[0].read_text()) | {"file": files[0]}


def test_votes_from_the_page_to_the_evaluation(driver, made: tuple[Written, Key], tmp_path: Path):
    written, key = made
    _open(driver, written)
    show(driver)
    _press(driver, "ab", 0)
    _click(driver, "#start")
    assert "write your name" in driver.find_element("id", "name-wrong").text, "keys do nothing before there is a name"
    _type_name(driver, "a<b")
    assert "letters" in driver.find_element("id", "name-wrong").text
    _type_name(driver, "Zoë 1")
    assert _at(driver) == "1 of 8" and not driver.find_element("id", "back").is_enabled()
    _press(driver, "a")
    _press(driver, "\ue014")  # right arrow
    _press(driver, "t")
    _click(driver, "[data-vote=left]")
    assert _at(driver) == "5 of 8"
    _press(driver, "aa", 0)
    assert _at(driver) == "6 of 8", "the second press comes too early for the next pair"
    time.sleep(REST)
    part = _download(driver, tmp_path / "part", "part")
    assert [vote["vote"] for vote in part["votes"]] == ["left", "right", "tie", "left", "left"]

    driver.refresh()
    assert driver.find_element("id", "name").get_attribute("value") == "Zoë 1"
    assert driver.find_element("id", "start").text == "Continue at pair 6"
    _click(driver, "#start")
    assert _at(driver) == "6 of 8" and driver.find_element("id", "bar").get_attribute("value") == "5"
    _press(driver, "z\ue003")  # back twice, with z and with backspace
    assert _at(driver) == "4 of 8" and _pressed(driver) == ["left"]
    _press(driver, "b")
    assert _at(driver) == "5 of 8" and _pressed(driver) == ["left"]
    _press(driver, "nn")
    assert _at(driver) == "6 of 8", "next passes over what is judged, and no further"
    _press(driver, "sst")
    assert driver.find_element("id", "done").is_displayed() and "skipped 2" in driver.find_element("id", "sum").text
    done = _download(driver, tmp_path / "done", "download")
    assert done["file"].name == f"votes_{written.hash}_Zoë_1.json" and done["page"] == written.hash
    assert [vote["vote"] for vote in done["votes"]] == ["left", "right", "tie", "right", "left", "skip", "skip", "tie"]
    assert all(0 < vote["seconds"] < 60 for vote in done["votes"])

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["votes", str(tmp_path / "e"), str(written.path), str(done["file"])]) == 0
    assert "6 judged, 2 skipped, 0 without an answer" in said.getvalue()
    votes = read_votes(tmp_path / "e")
    for vote, item, given in zip(votes, key.items, done["votes"], strict=True):
        ours = "left" if item.ours_first else "right"
        expected = given["vote"] if given["vote"] in ("tie", "skip") else "ours" if given["vote"] == ours else "theirs"
        assert (vote.pair, vote.verdict) == (item.pair, expected)
    assert complaints(driver) == []


def test_what_is_kept_belongs_to_page_and_voter(driver, made: tuple[Written, Key], tmp_path: Path):
    written, _ = made
    _open(driver, written, "anna")
    _press(driver, "aa")
    driver.execute_script("document.getElementById('guide').open = true")
    _click(driver, "#leave")
    assert driver.find_element("id", "name").get_attribute("value") == ""
    _type_name(driver, "__proto__")
    assert _at(driver) == "1 of 8", "another voter begins anew"
    _press(driver, "b")
    driver.refresh()
    _type_name(driver, "anna")
    assert _at(driver) == "3 of 8"
    other, _ = page(tmp_path / "e", pairs=6, seed=4)
    _open(driver, other, "anna")
    assert _at(driver) == "1 of 8", "another page knows nothing of it"
    driver.execute_script("localStorage.setItem('gipo_mc/' + arguments[0], '{\"voters\": {\"anna\": 3}}')", other.hash)
    driver.refresh()
    assert "damaged" in driver.find_element("id", "alert").text
    _type_name(driver, "anna")
    assert _at(driver) == "1 of 8" and complaints(driver) == []


def test_keys_can_be_switched_off(driver, made: tuple[Written, Key]):
    _open(driver, made[0], "ben")
    driver.execute_script("document.getElementById('guide').open = true")
    _click(driver, "#keys")
    _press(driver, "ab", 0)
    assert _at(driver) == "1 of 8"
    _click(driver, "#keys")
    hold = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', repeat: true}))"
    driver.execute_script(hold)
    assert _at(driver) == "1 of 8", "a key that is held down is no vote"
    driver.execute_script(hold.replace("repeat", "ctrlKey"))
    assert _at(driver) == "1 of 8", "Ctrl and a key are the browser's"


def test_nasty_texts(driver, tmp_path: Path):
    rows = [pair(i, prompt=f"{i} {NASTY['ours']}", **NASTY) for i in range(3)]
    written, key = page(write_pairs(tmp_path / "e", rows), pairs=2, repeats=0, attention=1)
    _open(driver, written, "eve")
    for number, (item, hidden) in enumerate(zip(data_of(written)["items"], key.items, strict=True)):
        texts = {side: driver.find_element("id", side).text for side in ("left", "right")}
        ours, theirs = ("left", "right") if hidden.ours_first else ("right", "left")
        for mark in ("</script><img src=x onerror=", "[[A]] {{ 7*7 }}", "U+202E", "U+001B", "U+0000", "U+D800", "end"):
            assert mark in texts[ours], mark
        assert "x" * 3000 in texts[theirs] and len(texts[theirs]) > 20_000
        assert not [side for side in texts if item[side].startswith(PLEASE) and side != hidden.asked]
        for size in (PHONE, DESKTOP):
            show(driver, size)
            wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert driver.execute_script(wide) == 0, "nothing is wider than the screen"
        assert _at(driver) == f"{number + 1} of 3"
        _press(driver, "a")
    assert driver.title == "Which response is better?"
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert complaints(driver) == []


def test_phone_dark_and_print(driver, made: tuple[Written, Key]):
    written, _ = made
    _open(driver, written, "kim")
    paper = "return getComputedStyle(document.body).backgroundColor"
    show(driver)
    left, right = (driver.find_element("id", side).rect for side in ("left", "right"))
    assert left["y"] == right["y"] and left["x"] < right["x"], "side by side"
    light = driver.execute_script(paper)
    show(driver, PHONE, dark=True)
    left, right = (driver.find_element("id", side).rect for side in ("left", "right"))
    assert left["x"] == right["x"] and left["y"] < right["y"], "one above the other"
    assert driver.execute_script(paper) != light
    for button in driver.find_elements("css selector", ".votes button"):
        rect = button.rect
        assert rect["height"] >= 36 and rect["x"] >= 0 and rect["x"] + rect["width"] <= PHONE[0]
    show(driver, dark=True, printed=True)
    assert driver.execute_script(paper) == "rgb(255, 255, 255)", "paper stays white"
    assert not driver.find_element("css selector", ".votes").is_displayed()
    assert driver.find_element("id", "left").is_displayed()
    show(driver)


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_no_serious_fault_before_between_and_after_the_votes(
    driver, made: tuple[Written, Key], size: tuple[int, int], dark: bool
):
    show(driver, size, dark=dark)
    _open(driver, made[0])
    assert not serious_faults(driver)
    _type_name(driver, f"lou {size[0]} {dark}")
    _press(driver, "a")
    assert not serious_faults(driver)
    _press(driver, "abtabta")
    assert driver.find_element("id", "done").is_displayed()
    assert not serious_faults(driver) and complaints(driver) == []
    show(driver)


def test_the_policy_stops_other_scripts(driver, made: tuple[Written, Key], tmp_path: Path):
    """What would run if a text came into the page as markup: the policy refuses it, and says so on the console."""
    html = made[0].path.read_text(encoding="utf-8")
    changed = tmp_path / "changed.html"
    changed.write_text(html.replace("<main", "<script>document.title = 'bad'</script><img src=x onerror=\"1\"><main"))
    driver.get(changed.as_uri())
    assert driver.title == "Which response is better?"
    assert len([line for line in complaints(driver) if "Content Security Policy" in line]) >= 2


def test_a_browser_that_keeps_nothing_says_so(driver, made: tuple[Written, Key]):
    deny = (
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('denied', 'SecurityError') }})"
    )
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": deny})
    try:
        _open(driver, made[0], "lee")
        assert "download your votes before you close" in driver.find_element("id", "alert").text
        _press(driver, "a")
        assert _at(driver) == "2 of 8" and complaints(driver) == []
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
        driver.execute_script("window.onbeforeunload = null")
