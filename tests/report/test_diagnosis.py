"""What a report says of the reward and the groups of a run: charts, and verdicts in words."""

from __future__ import annotations

from pathlib import Path

from gipo_mc.report import diagnosis
from gipo_mc.report.runs import RunData, load_run
from tests.report.pages import page_of, write_run


def _rows(steps: int, **more: float) -> list[dict[str, float]]:
    return [
        {
            "step": step, "reward/mean": 1.0, "signal/auc/reward": 0.52, "signal/auc/gain": 0.79,
            "signal/auc/kl": 0.6, "group/domain_auc": 0.55, "group/0/mass": 0.7, "group/1/mass": 0.3, "group/best": 1.0,
            "pairs/accuracy/domain/easy": 0.81, "pairs/accuracy/domain/hard": 0.53, "eval/gain/domain/easy": 0.4,
            "eval/gain/domain/hard": -0.1, **more,
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip


def _run(path: Path, signal: str = "reward") -> RunData:
    config = f"algorithm: {{groups_from: classifier, signal: {signal}, reference_samples: 4}}\n"
    run = write_run(path, _rows(4), config=config)
    return load_run(run)


def test_verdicts_name_the_signal_that_knows_more(tmp_path: Path) -> None:
    found = diagnosis.verdicts(_run(tmp_path / "run"))
    assert "AUC of 0.55" in found[0] and "reward, does so with 0.52" in found[0]
    assert "gain over the reference, with 0.79" in found[0]
    assert "easy 81%, hard 53% (chance: 50%)" in found[1] and "easy +0.400, hard -0.100" in found[2]
    own = diagnosis.verdicts(_run(tmp_path / "gain", "gain"))[0]
    assert "gain over the reference, does so with 0.79" in own and "the best of those" not in own


def test_the_page_has_them(tmp_path: Path) -> None:
    _run(tmp_path / "run")
    page = page_of([tmp_path / "run"], tmp_path / "r.html")
    assert {"Do the signals know the domains?", "Held-out pairs, right by domain"} <= set(page.titles)
    assert "signal/auc" not in page.text and "pairs/accuracy" not in page.text, "in charts, not among the rest"


def test_parts_of_the_reward_and_what_is_learned_of_it_have_charts(tmp_path: Path) -> None:
    """Means and domains of each, held out too; of one run and of several, and none of them among the rest."""
    means = ("gain/mean", "eval/gain/mean", "worst/domain_gain", "disagreement/mean", "eval/disagreement/mean")
    keys = ("gain/domain/easy", "disagreement/domain/easy", "eval/disagreement/domain/easy", "pairs/accuracy/group/0")
    parts = ("reward/part/helpful", "reward/part/exact", "reward/part/length_penalty")
    more = {name: 0.1 * place for place, name in enumerate((*means, *keys, *parts, "pairs/accuracy"))}
    for name in ("one", "two"):
        write_run(tmp_path / name, _rows(4, **more), config="algorithm: {groups_from: classifier}\n")
    page = page_of([tmp_path / "one"], tmp_path / "one.html")
    wanted = {"Parts of the reward", "Gain over the reference", "Disagreement of the reward models"}
    assert wanted | {"Held-out pairs, right", "Held-out disagreement: easy"} <= set(page.titles)
    for name in ("helpful", "exact", "length_penalty", "group 0", "worst domain"):
        assert name in page.text
    assert not any(name in page.text for name in ("reward/part", "gain/mean", "disagreement/mean", "pairs/accuracy"))
    page = page_of([tmp_path / "one", tmp_path / "two"], tmp_path / "two.html")
    assert {"Parts of the reward: exact", "Gain over the reference: held out"} <= set(page.titles)
