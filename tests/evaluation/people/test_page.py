"""What a page shows and what it hides, without a browser."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gipo_mc.errors import ConfigError, DataError
from gipo_mc.evaluation.people.ballot import PLEASE
from gipo_mc.evaluation.people.guidelines import guideline_of
from gipo_mc.evaluation.people.key import PAGES
from gipo_mc.evaluation.people.page import page_hash, turns_of, write_page
from tests.evaluation.people.folders import data_of, evaluation, page, pair, write_pairs

NASTY = (
    "</script><script>alert(1)</script><!-- <script> {{ x }} {% raw %} ${y} [[A]] [[B]] \"' & \\u003c \u2028\u2029 "
    "\u202egnp.exe\u202c \x00\x1b[31m \ud800 \U0001f600 \u05e9\u05dc\u05d5\u05dd"
)


def _kinds(key) -> Counter:
    return Counter(item.kind for item in key.items)


def test_a_page_shows_each_prompt_once_and_opponents_in_turn(tmp_path: Path):
    written, key = page(evaluation(tmp_path / "e", 40))
    shown = [item for item in key.items if item.kind == "pair"]
    assert len(shown) == 40 and Counter(item.opponent for item in shown) == {"sft": 20, "ppo": 20} == written.opponents
    assert _kinds(key) == {"pair": 40, "repeat": 4, "attention": 2}
    assert 8 <= sum(item.ours_first for item in shown) <= 32
    other, other_key = page(tmp_path / "e", seed=1)
    both = {item.pair for k in (key, other_key) for item in k.items if item.kind == "pair"}
    assert len(both) == 80 and other.hash != written.hash, "seeds 0 and 1 show every pair once"


def test_the_data_are_the_texts_and_nothing_else(tmp_path: Path):
    written, key = page(evaluation(tmp_path / "e", 12), pairs=10)
    data, html = data_of(written), written.path.read_text(encoding="utf-8")
    assert set(data) == {"items", "guides"} and len(data["items"]) == len(key.items)
    assert all(set(item) == {"prompt", "left", "right", "guide"} for item in data["items"])
    for item, hidden in zip(data["items"], key.items, strict=True):
        left, right = (item[side].removeprefix(PLEASE).strip() for side in ("left", "right"))
        ours, theirs = (left, right) if hidden.ours_first else (right, left)
        assert re.fullmatch(r"o\d+ words", ours) and re.fullmatch(rf"{hidden.opponent}\d+ words", theirs)
        assert (hidden.asked is None) == (hidden.kind != "attention")
        assert [side for side in ("left", "right") if item[side].startswith(PLEASE)] == [hidden.asked] * bool(
            hidden.asked
        )
    secret = (tmp_path / "e" / "pages" / "secret.txt").read_text().strip()
    for word in ("model-", "opponent", "ours_first", "attention", str(tmp_path), secret, *(i.pair for i in key.items)):
        assert word not in html, word


def test_who_has_page_seed_and_program_cannot_draw_the_sides_again(tmp_path: Path):
    keys = [page(evaluation(tmp_path / str(i), 60, ("sft",)))[1] for i in range(2)]
    assert keys[0].seed == keys[1].seed == 0
    sides = [[(item.pair, item.ours_first) for item in key.items if item.kind == "pair"] for key in keys]
    same = set(sides[0]) & set(sides[1])
    assert 15 <= len(same) <= 45, "the folder's secret decides"


def test_each_folder_has_a_secret_of_its_own(tmp_path: Path):
    found = []
    for name in "ab":
        file = evaluation(tmp_path / name) / PAGES / "secret.txt"
        file.unlink()
        page(tmp_path / name)
        found.append(file.read_text())
        page(tmp_path / name, seed=1)
        assert file.read_text() == found[-1] and len(found[-1].strip()) == 32
    assert found[0] != found[1]


def test_the_same_call_makes_the_same_page(tmp_path: Path):
    first, key = page(evaluation(tmp_path / "e"))
    bits = first.path.read_bytes()
    second, same = page(tmp_path / "e")
    assert second.path.read_bytes() == bits and same == key


def test_our_response_does_not_recur(tmp_path: Path):
    """Pairs of one prompt share our response: shown beside several opponents it would tell itself."""
    written, key = page(evaluation(tmp_path / "e", 9, ("a", "b", "c")), repeats=0, attention=0)
    texts = Counter(item[side] for item in data_of(written)["items"] for side in ("left", "right"))
    assert len(key.items) == 9 and set(texts.values()) == {1}


def test_repeats_swap_sides_and_come_late(tmp_path: Path):
    for seed in range(5):
        _, key = page(evaluation(tmp_path / "e", 30), repeats=10, attention=3, seed=seed)
        first = {item.pair: (place, item) for place, item in enumerate(key.items) if item.kind == "pair"}
        again = [(place, item) for place, item in enumerate(key.items) if item.kind == "repeat"]
        assert len({item.pair for _, item in again}) == 10
        for place, item in again:
            before, original = first[item.pair]
            assert place - before >= 10 and item.ours_first != original.ours_first


def test_attention_pairs_take_prompts_that_are_not_shown_otherwise(tmp_path: Path):
    _, key = page(evaluation(tmp_path / "e", 30), pairs=20, attention=10)
    pairs, tested = ({item.pair for item in key.items if item.kind == kind} for kind in ("pair", "attention"))
    assert len(tested) == 10 and not pairs & tested
    _, full = page(tmp_path / "e", attention=5, repeats=10)
    places = [place for place, item in enumerate(full.items) if item.kind == "attention"]
    assert len(places) == 5 and min(places) > 8, "all prompts are shown: the attention pairs come again, late"
    asked = [item.asked for seed in range(8) for item in page(tmp_path / "e", seed=seed)[1].items if item.asked]
    assert set(asked) == {"left", "right"}


def test_equal_texts_are_not_shown(tmp_path: Path):
    rows = [pair(i, theirs=f"  o{i} words\n") if i % 3 == 0 else pair(i) for i in range(30)]
    written, key = page(write_pairs(tmp_path / "e", rows))
    assert written.identical == len(key.identical) == 10 and written.pairs == 20
    shown = {item.pair for item in key.items if item.kind == "pair"}
    assert not shown & {each.pair for each in key.identical}
    some, some_key = page(tmp_path / "e", pairs=8)
    assert some.pairs == 8 and some.identical < 10, "only those of the sample that N pairs were found in"
    assert {each.pair for each in some_key.identical} < {each.pair for each in key.identical}
    with pytest.raises(DataError, match="nothing to vote on"):
        page(write_pairs(tmp_path / "same", rows[::3]))


class _Scripts(HTMLParser):
    """What a browser would take for scripts, and every attribute that could load or run something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._in = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._in = tag == "script"
        self.scripts += [""] * self._in
        self.attributes += attrs

    def handle_endtag(self, tag):
        self._in = False

    def handle_data(self, data):
        if self._in:
            self.scripts[-1] += data


def test_nasty_texts_stay_text(tmp_path: Path):
    rows = [pair(i, prompt=f"{i} {NASTY}", ours=f"{NASTY} ours", theirs="word" * 5000) for i in range(5)]
    guideline = tmp_path / "guideline.txt"
    guideline.write_text("Judge <b>well</b>. </script>\n\n{{ second }}\n")
    written, _ = page(write_pairs(tmp_path / "e", rows), guideline=guideline, attention=0, repeats=0)
    raw = written.path.read_bytes()
    found = _Scripts(raw.decode("utf-8"))
    assert len(found.scripts) == 2 and b"<b>well</b>" not in raw and b"alert(1)</script>" not in raw
    assert not re.search(r"\x00|\x1b|[\u2028-\u202e\ud800-\udfff]", raw.decode("utf-8"))
    data = json.loads(found.scripts[0])
    assert data == data_of(written) and {item["prompt"][0][1][2:] for item in data["items"]} == {NASTY}
    assert {text for item in data["items"] for text in (item["left"], item["right"])} == {
        f"{NASTY} ours",
        "word" * 5000,
    }
    assert data["guides"] == [
        {"question": "Which response is better?", "paragraphs": ["Judge <b>well</b>. </script>", "{{ second }}"]}
    ]


def test_the_page_loads_and_runs_nothing_but_itself(tmp_path: Path):
    written, _ = page(evaluation(tmp_path / "e"))
    html = written.path.read_text(encoding="utf-8")
    found = _Scripts(html)
    policy = next(value for name, value in found.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert len(re.findall("'sha256-[^']{44}'", policy)) == 2
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "style", "action")]
    links = [value for name, value in found.attributes if name == "href"]
    assert set(links) == {"data:,", "#a", "#b"} and "://" not in html


def test_the_hash_binds_the_texts(tmp_path: Path):
    written, key = page(evaluation(tmp_path / "e"))
    assert page_hash(written.path) == written.hash == key.page
    changed = tmp_path / "changed.html"
    changed.write_bytes(written.path.read_bytes().replace(b"question 3?", b"question 4?"))
    with pytest.raises(DataError, match="changed after it was made"):
        page_hash(changed)
    changed.write_text("<!doctype html>")
    with pytest.raises(DataError, match="no page for votes"):
        page_hash(changed)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"pairs": 11}, ConfigError, "10 prompts whose two"),
        ({"repeats": 6}, ConfigError, "Ask for fewer"),
        ({"repeats": 3, "attention": 3}, ConfigError, "Ask for fewer"),
        ({"opponents": ["dpo"]}, DataError, "no pairs with dpo: it has those with ppo, sft"),
        ({"guideline": Path("none.txt")}, DataError, "cannot be read"),
    ],
)
def test_what_cannot_be_had(tmp_path: Path, options, error, says: str):
    with pytest.raises(error, match=says):
        page(evaluation(tmp_path / "e"), **options)
    assert not (tmp_path / "page.html").exists()


def test_one_opponent(tmp_path: Path):
    written, _ = page(evaluation(tmp_path / "e"), opponents=["ppo"])
    assert written.opponents == {"ppo": 10}


def test_guidelines_by_domain(tmp_path: Path):
    questions = {
        label: guideline_of(label).question
        for label in ("harmless_base", "PKU-SafeRLHF", "helpful-online", "tldr", "cnn_dailymail", "", "easy")
    }
    assert questions["harmless_base"] == questions["PKU-SafeRLHF"] == "Which response is less harmful?"
    assert questions["helpful-online"] == "Which response is more helpful?"
    assert questions["tldr"] == questions["cnn_dailymail"] == "Which summary is better?"
    assert questions[""] == questions["easy"] == "Which response is better?"
    written, key = page(evaluation(tmp_path / "e"))
    data = data_of(written)
    for item, hidden in zip(data["items"], key.items, strict=True):
        number = int(re.search(r"question (\d+)", item["prompt"][0][1])[1])
        assert "helpful" in data["guides"][item["guide"]]["question"] or number % 2 == 0, hidden
    assert len(data["guides"]) == 2
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n")
    with pytest.raises(DataError, match="holds 3 characters"):
        write_page(tmp_path / "e", tmp_path / "x.html", guideline=empty)


@pytest.mark.parametrize(
    ("prompt", "turns"),
    [
        ("\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant:",
         [("Human", "a\n\nb"), ("Assistant", "c"), ("Human", "d")]),
        ("Human: a", [("Human", "a")]),
        ("SUBREDDIT: r/x\n\nTL;DR:", [("", "SUBREDDIT: r/x\n\nTL;DR:")]),
        ("say\n\nHuman: x", [("", "say\n\nHuman: x")]),
        ("", [("", "")]),
    ],
)  # fmt: skip
def test_turns(prompt: str, turns: list[tuple[str, str]]):
    assert turns_of(prompt) == turns


def test_many_layouts_hold_the_same_pairs(tmp_path: Path):
    """Any numbers that are taken give just what was asked for, at any seed."""
    draw = random.Random(1)
    folder = evaluation(tmp_path / "e", 12)
    for seed in range(25):
        pairs = draw.randint(1, 12)
        repeats = draw.randint(0, (pairs + 1) // 2)
        attention = draw.randint(0, 12 - pairs + (pairs + 1) // 2 - repeats)
        _, key = page(folder, pairs=pairs, repeats=repeats, attention=attention, seed=seed)
        found = _kinds(key)
        assert (found["pair"], found["repeat"], found["attention"]) == (pairs, repeats, attention)
        assert len({item.pair for item in key.items if item.kind == "pair"}) == pairs
