"""Who wins, in the report: bars with their numbers, samples with the verdicts of both orders, agreement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.errors import DataError
from gipo_mc.evaluation.pairs import read_pairs
from gipo_mc.evaluation.tables.model import read_table
from gipo_mc.report.evaluation.policies_shown import policies
from gipo_mc.report.evaluation.winners import load_evaluation
from gipo_mc.report.report import build_report, save_charts
from tests.report.evaluations import LONG, SAME, evaluation, scored_alone, with_agreement
from tests.report.pages import Page
from tests.scripts import run_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "report.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_agreement(evaluation(tmp_path_factory.mktemp("evaluation") / "e"))


@pytest.fixture(scope="module")
def html(folder: Path) -> Path:
    return build_report([], folder / "report.html", evaluation=folder)


def test_every_bar_is_a_cell_of_the_table(folder: Path) -> None:
    (judge,) = load_evaluation(folder).evaluators
    (cells,) = [each.cells for each in read_table(folder).evaluators]
    assert [opponent.label for opponent in judge.opponents] == ["sft", "ppo"]
    for opponent in judge.opponents:
        own = {(c.scope, c.label): c for c in cells if c.opponent == opponent.label}
        assert [bar.label for bar in opponent.bars] == ["all pairs", "harmless", "helpful"]
        assert len(opponent.groups) == 3
        whole = own["all", ""]
        bar = opponent.bars[0]
        assert (bar.win, bar.tie, bar.lose) == tuple(100 * x.value for x in (whole.win, whole.tie, whole.lose))
        assert bar.win + bar.tie + bar.lose == pytest.approx(100) and bar.pairs == f"{whole.pairs}"
        numbers = dict(bar.numbers)
        assert numbers["win"] == f"{100 * whole.win.value:.1f} [{100 * whole.win.low:.1f}, {100 * whole.win.high:.1f}]"
        assert "margin" in numbers and numbers["tokens"].endswith(": 50")
        assert any("flipped with the order" in line for line in opponent.lines)
    assert any("one order" in note for note in judge.notes)


def test_the_samples_have_their_verdicts_in_both_orders_with_reasons(folder: Path) -> None:
    shown = load_evaluation(folder).pairs
    assert {pair.why for pair in shown} == {
        "Ours wins", "Theirs wins", "Tie", "The verdict flips with the order"
    }  # fmt: skip
    won = [pair for pair in shown if pair.why == "Ours wins" and pair.opponent == "sft"]
    assert {pair.domain for pair in won} == {"harmless", "helpful"}
    for pair in won:
        assert [(v.order, v.verdict) for v in pair.verdicts] == [("ours first", "ours"), ("theirs first", "ours")]
        assert pair.verdicts[0].reason.startswith("The first order.")
    long = next(pair for pair in won if pair.domain == "helpful")
    assert len(long.theirs) < 4100 < len(LONG) and "more characters)" in long.theirs


def test_one_answer_to_every_harmless_prompt_is_seen(folder: Path) -> None:
    rows = {(row.policy, row.domain): row for row in policies(read_pairs(folder))}
    harmless = rows["ours", "harmless"]
    assert (harmless.identical, harmless.commonest, harmless.refusals) == ("100 %", "100 %", "100 %")
    assert harmless.example == SAME and harmless.count == 20 and rows["ours", ""].example == ""
    assert rows["ours", "helpful"].near == "0 %" and rows["sft", ""].refusals == "0 %"


def test_the_page_holds_it_all_and_nothing_that_acts(html: Path) -> None:
    page = Page(html.read_text(encoding="utf-8"))
    for text in ("Who wins", "ours against ppo", "Agreement", "Ann <b>", "By inferred group", "[[A]]", "{{ 7*7 }}"):
        assert text in page.text, text
    assert not any(tag in ("script", "img", "link") for tag, _ in page.tags)
    raw = html.read_text(encoding="utf-8")
    assert "\u202e" not in raw and "\x1b" not in raw and "<img" not in raw
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert "evaluation-pairs" in links and links <= ids


def test_the_same_folder_gives_the_same_bytes(html: Path, folder: Path, tmp_path: Path) -> None:
    assert build_report([], tmp_path / "b.html", evaluation=folder).read_bytes() == html.read_bytes()


def test_runs_and_an_evaluation_stand_on_one_page(runs: Any, folder: Path, tmp_path: Path) -> None:
    page = Page(build_report([runs["sft"]], tmp_path / "r.html", evaluation=folder).read_text(encoding="utf-8"))
    assert "Supervised fine-tuning" in page.text and page.text.index("Who wins: e") < page.text.index("Learning rate")
    plain = build_report([runs["sft"]], tmp_path / "s.html").read_text(encoding="utf-8")
    assert 'id="evaluation' not in plain and "Who wins" not in plain


def test_no_order_is_spoken_of_where_a_reward_model_judged(tmp_path: Path) -> None:
    html = build_report([], tmp_path / "r.html", evaluation=scored_alone(tmp_path / "e"))
    text = Page(html.read_text(encoding="utf-8")).text
    text = text[text.index("Who wins") :]
    assert "scored every response alone" in text and "Of the 10 ties: 10 equal scores." in text
    assert "Left out: 4 pairs without a valid verdict." in text
    assert not any(words in text for words in ("order", "flip", "shown first", "ours first")), text


def test_the_command_takes_an_evaluation_alone_and_draws_its_bars(folder: Path, tmp_path: Path) -> None:
    done = run_script(SCRIPT, "--evaluation", str(folder), "--charts", str(tmp_path / "charts"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / "report.html"), f"{tmp_path / 'charts'}: 1 charts"]
    assert "win " in (tmp_path / "charts" / "win_tie_lose_by_judge.svg").read_text()
    done = run_script(SCRIPT)
    assert done.returncode == 2 and "--evaluation DIR" in done.stderr


def test_what_is_missing_or_damaged_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gipo-mc evaluate table"):
        build_report([], tmp_path / "r.html", evaluation=tmp_path)
    other = evaluation(tmp_path / "e", prompts=12)
    for damage in ("{", '{"couples": []}', '{"among": 3, "couples": []}', '{"among": null, "couples": [{"first": 1}]}'):
        (other / "agreement.json").write_text(damage)
        with pytest.raises(DataError, match=r"agreement\.json is damaged"):
            build_report([], tmp_path / "r.html", evaluation=other)
    (other / "agreement.json").write_text(json.dumps({"among": None, "couples": []}))
    assert "Agreement" not in build_report([], tmp_path / "r.html", evaluation=other).read_text()
    assert len(save_charts([], tmp_path / "c", other)) == 1
