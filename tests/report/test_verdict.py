"""What the report says first: did the policy get better, where not, which of several is best, groups by reward."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.report import comparison, groups, hacking, summary
from gipo_mc.report.judgement import apart, best_step, change
from gipo_mc.report.runs import load_run, load_runs
from gipo_mc.report.verdict import verdict
from tests.report.pages import page_of, write_run

#: A wavering that neither rises nor falls.
_WAVES = (0.0, 0.02, -0.01, 0.015, -0.02)


def _run(path: Path, metrics: Mapping[str, Callable[[float], float]], steps: int = 40, **more: Any) -> Path:
    rows = [
        {"step": s, **{name: of(s / steps) + _WAVES[s % 5] for name, of in metrics.items()}}
        for s in range(1, steps + 1)
    ]
    return write_run(path, rows, more.get("status"), more.get("config", ""))


def _samples(path: Path, rows: list[dict[str, Any]]) -> None:
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("gold", "tone", "words"),
    [
        (lambda t: t, "good", "The policy got better: its gold reward rose"),
        (lambda t: -t, "bad", "The reward rose and the policy got worse: its gold reward fell"),
        (lambda t: 0.3, "warn", "did not clearly change"),
    ],
)
def test_the_truest_measure_decides(tmp_path: Path, gold: Callable[[float], float], tone: str, words: str) -> None:
    said = verdict([load_run(_run(tmp_path / "r", {"reward/mean": lambda t: t, "gold/mean": gold}))])
    assert said.tone == tone and words in said.headline


def test_a_domain_that_fell_is_not_hidden_by_the_mean(tmp_path: Path) -> None:
    metrics = {"reward/mean": lambda t: t, "reward/domain/a": lambda t: 2 * t, "reward/domain/b": lambda t: 1 - t}
    said = verdict([load_run(_run(tmp_path / "r", metrics))])
    assert said.tone == "warn" and "not everywhere" in said.headline
    assert any(tone == "bad" and text.startswith("Domain b fell from 0.9") for tone, text in said.points)
    assert any("The worst domain is b at 0.0" in text for _, text in said.points)


def test_signs_of_hacking_count_where_the_truth_is_unknown(tmp_path: Path) -> None:
    path = _run(tmp_path / "r", {"reward/mean": lambda t: t})
    warning = {"step": 9, "text": "One answer to everything: look."}
    (path / "warnings.jsonl").write_text(json.dumps(warning) + "\n")
    said = verdict([load_run(path)])
    assert said.tone == "warn" and "signs of reward hacking" in said.headline and "One answer" in said.points[0][1]


def test_an_earlier_checkpoint_that_was_better_is_named(tmp_path: Path) -> None:
    run = load_run(_run(tmp_path / "r", {"reward/mean": lambda t: 1 - 4 * (t - 0.6) ** 2}))
    assert best_step(run, "reward/mean") is not None
    assert any("a checkpoint near it is better" in text for _, text in verdict([run]).points)
    assert best_step(load_run(_run(tmp_path / "s", {"reward/mean": lambda t: t})), "reward/mean") is None


def test_a_few_values_that_turn_are_no_wavering(tmp_path: Path) -> None:
    rows = [{"step": s, "reward/mean": s / 40} for s in range(1, 41)]
    for step, gold in ((1, 0.288), (20, 0.558), (30, 0.455), (40, 0.056)):
        rows[step - 1]["gold/mean"] = gold
    said = verdict([load_run(write_run(tmp_path / "r", rows))])
    assert said.tone == "warn" and said.headline == (
        "Look at the curve: the gold reward went from 0.288 to 0.056 by way of 0.558 at iteration 20, and 4 values are "
        "too few to tell more."
    )


def test_few_values_are_not_judged_and_a_failed_run_failed(tmp_path: Path) -> None:
    short = load_run(_run(tmp_path / "r", {"reward/mean": lambda t: t}, 2))
    assert change(short, "reward/mean") is None and verdict([short]).headline == "Too short to judge: 2 iterations."
    failed = _run(tmp_path / "f", {"reward/mean": lambda t: t}, status={"state": "failed", "message": "No disk."})
    assert verdict([load_run(failed)]).headline == "It failed after step 40. No disk."


def test_a_policy_that_waited_to_the_end_was_not_trained(tmp_path: Path) -> None:
    waited = _run(tmp_path / "r", {"reward/mean": lambda t: t}, config="algorithm: {critic_warmup: 40}\n")
    assert verdict([load_run(waited)]).headline.startswith("The policy was not trained: algorithm.critic_warmup=40")
    trained = _run(tmp_path / "s", {"reward/mean": lambda t: t}, config="algorithm: {critic_warmup: 39}\n")
    assert verdict([load_run(trained)]).tone == "good"


def test_of_several_runs_the_best_where_it_is_hardest_is_named(tmp_path: Path) -> None:
    ends = {"ppo": (1.5, 0.2), "gi": (1.2, 0.6)}
    paths = [
        _run(
            tmp_path / name,
            {
                "reward/mean": lambda t, e=easy, h=hard: t * (e + h) / 2,
                "reward/domain/easy": lambda t, e=easy: t * e,
                "reward/domain/hard": lambda t, h=hard: t * h,
            },
        )
        for name, (easy, hard) in ends.items()
    ]
    runs = load_runs(paths)
    said = verdict(runs)
    assert said.headline.startswith("gi has the best worst domain: hard ends at a reward of 0.5")
    assert apart(*runs, "reward/domain/hard") and not apart(runs[0], runs[0], "reward/domain/hard")
    assert [text.partition(":")[0] for _, text in said.points[1:]] == ["ppo", "gi"]
    html = page_of(paths, tmp_path / "r.html")
    assert html.text.index("gi has the best") < html.text.index("Side by side")


def test_runs_that_hardly_differ_are_named_with_their_numbers(tmp_path: Path) -> None:
    names = ("mean", "domain/easy", "domain/hard")
    curves = {
        "reward/" + name: lambda t, high=high: t * high for name, high in zip(names, (1.0, 1.5, 0.5), strict=True)
    }
    runs = load_runs([_run(tmp_path / name, curves) for name in ("ppo", "gi")])
    assert (said := verdict(runs).headline).startswith(
        "On the worst domain, hard, the best two hardly differ (ppo, 0.4"
    )
    assert ", and gi, 0.4" in said and "; on average the best two hardly differ (ppo, 0.9" in said


def test_the_worst_domain_is_one_that_is_trained_on(tmp_path: Path) -> None:
    """What training never asks is a figure of its own, in the words on one run, on several, and on its cards."""
    ends = {"ppo": (0.9, 0.4, 0.5), "gi": (0.9, 0.6, 0.2)}
    paths = []
    for name, golds in ends.items():
        metrics: dict[str, Callable[[float], float]] = {
            f"gold/domain/{domain}": lambda t, end=end: t * end
            for domain, end in zip(("a", "b", "unasked"), golds, strict=True)
        }
        metrics |= {f"reward/domain/{domain}": lambda t: t for domain in "ab"} | {"reward/mean": lambda t: t}
        kl = 2.0 if name == "ppo" else 5.0
        paths.append(_run(tmp_path / name, metrics | {"gold/mean": lambda t: t, "kl/mean": lambda t, kl=kl: kl}))
    ppo, gi = load_runs(paths)
    assert gi.domains("gold/domain/") == (["a", "b"], ["unasked"]) and ppo.domains("kl/domain/") == ([], [])
    both = verdict([ppo, gi])
    assert both.headline.startswith("gi has the best worst domain: b ends at a gold reward of 0.5")
    points = " ".join(text for _, text in both.points)
    assert "Domain unasked, which is not trained on, ends at: ppo 0.4" in points and "gi 0.1" in points
    assert "KL to the reference, in nats a response: ppo 2.00, gi 5.00." in points and "larger KL" in points
    alone = " ".join(text for _, text in verdict([gi]).points)
    assert "The worst domain is b at 0.5" in alone and "Domain unasked, which is not trained on, went from" in alone
    found = summary.worst_domain(gi)
    assert found is not None and found[0] == "b"
    assert "KL to the reference" not in " ".join(text for _, text in verdict([ppo, ppo]).points), "it is equal"
    others = load_run(
        _run(tmp_path / "o", {f"gold/domain/{key}": lambda t: t for key in "xy"} | {"reward/domain/a": abs})
    )
    assert others.domains("gold/domain/") == (["x", "y"], []), "no name says which is trained on"


def test_models_that_learned_and_one_that_overfitted(tmp_path: Path) -> None:
    falls = {"loss": lambda t: 2 - t, "eval/loss": lambda t: 2 - t}
    fine = _run(tmp_path / "a", falls, status={"command": "train_sft"})
    over = _run(tmp_path / "b", {"loss": lambda t: 2 - t, "eval/loss": lambda t: 1 + 2 * (t - 0.5) ** 2})
    assert verdict([load_run(fine)]).headline.startswith("The model learned: its held-out loss fell")
    assert "then it overfitted" in verdict([load_run(over)]).headline
    assert verdict(load_runs([fine, over])).headline.startswith("The lowest held-out loss has a")


def test_a_click_turns_values_into_differences(tmp_path: Path) -> None:
    paths = [_run(tmp_path / name, {"reward/mean": lambda t, e=e: e * t}) for name, e in (("a", 1.0), ("b", 2.0))]
    values, to_a, to_b = comparison.comparisons(load_runs(paths))
    assert values.against == "" and (to_a.against, to_b.against) == ("a", "b")
    assert to_a.rows[1][3].startswith("+0.9") and to_b.rows[0][3].startswith("−0.9") and to_a.best == {(1, 3)}
    page = page_of(paths, tmp_path / "r.html")
    inputs = [attributes["type"] for tag, attributes in page.tags if tag == "input"]
    assert inputs == ["checkbox"] * 2 + ["radio"] * 3
    assert ":root:has(#show-of-0-1:not(:checked)) .of-0-1 { display: none; }" in (tmp_path / "r.html").read_text()


def test_groups_are_named_by_their_prompts(tmp_path: Path) -> None:
    metrics = {f"group/{g}/{name}": lambda t, v=v: v for g, v in ((0, 0.2), (1, 0.8)) for name in ("mass", "reward")}
    path = _run(tmp_path / "r", {"reward/mean": lambda t: t, **metrics})
    rows = [
        {"step": 40, "prompt": f"Human: {words} number {n}\n\nAssistant:", "response": f"r{n}", "reward": 0.5,
         "domain": domain, "group_probs": probs}
        for n in range(8)
        for words, domain, probs in (
            ("please name a capital", "geography", [0.1, 0.9]), ("please prove the lemma", "maths", [0.8, 0.2]),
        )
    ]  # fmt: skip
    _samples(path, rows)
    high, low = groups.parts(load_run(path))
    assert [(part.label, part.rank) for part in (high, low)] == [
        ("group 1", "higher reward"),
        ("group 0", "lower reward"),
    ]
    assert "“capital”" in high.called and "“lemma”" in low.called and "please" not in high.called + low.called
    assert [example.domain for example in low.examples] == ["maths"] * 3 and low.domains[0][0] == "maths"
    assert 80 < low.domains[0][1] < 95
    said = " ".join(text for _, text in verdict([load_run(path)]).points)
    assert "group 1 has the higher reward at the end, 0.796" in said and "group 0 has the lower reward" in said
    page = page_of([path], tmp_path / "r.html")
    assert "Groups and domains by reward" in page.text and "prove the lemma number 0" in page.text
    assert "group 0, lower reward" in " ".join(page.text.split()) and "easy" not in page.text + said
    _samples(path, rows[:1])
    assert groups.parts(load_run(path))[0].called == "prompts such as “please name a capital number 0”"
    _samples(path, [])
    assert [part.called for part in groups.parts(load_run(path))] == ["group 1", "group 0"]


def test_without_groups_the_domains_are_ranked(tmp_path: Path) -> None:
    path = _run(
        tmp_path / "r", {"reward/mean": lambda t: t, "reward/domain/a": lambda t: 0, "reward/domain/b": lambda t: t}
    )
    assert [(part.called, part.rank) for part in groups.parts(load_run(path))] == [
        ("b", "higher reward"),
        ("a", "lower reward"),
    ]


def test_high_reward_and_yet(tmp_path: Path) -> None:
    path = _run(tmp_path / "r", {"reward/mean": lambda t: t})
    plain = [
        {"step": 40, "prompt": f"p{n}", "response": f"a fine answer to question {n}", "reward": n / 40, "length": 10}
        for n in range(36)
    ]
    bad = [
        {"response": "so good so good so good so good so good", "reward": 2.0, "length": 10},
        {"response": "it goes on and on", "reward": 1.5, "length": 45},
        {"response": "true to nobody", "reward": 1.2, "length": 10, "gold": -1.0},
        {"response": "no no no no no no no no no no", "reward": -2.0, "length": 60},
    ]
    _samples(path, [row | {"gold": 0.5} for row in plain] + [{"step": 40, "prompt": "q"} | row for row in bad])
    found = hacking.suspects(load_run(path))
    assert {one.response for one in found} == {str(row["response"]) for row in bad[:3]}
    why = " ".join(reason for one in found for reason in one.why)
    assert "repeats itself" in why and "4.5 times the median" in why and "gold reward -1.00, below the median" in why
    assert found[0].reward.startswith("2.00, above 9")
    assert (
        "High reward" not in page_of([path], tmp_path / "r.html").text
        and "high reward, and yet" in (tmp_path / "r.html").read_text()
    )
    _samples(path, plain)
    assert hacking.suspects(load_run(path)) == []
