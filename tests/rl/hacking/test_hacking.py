"""Reward hacking seen in an iteration: metrics by domain and group, alarms that are said now and then, examples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gipo_mc.algorithms.group_diagnostics import REPEAT
from gipo_mc.algorithms.state import Health
from gipo_mc.config import load_config
from gipo_mc.data.synthetic import builtin_tokenizer
from gipo_mc.ops import ObjectiveInputs
from gipo_mc.rl.experience import Experience, ModelOutputs
from gipo_mc.rl.hacking.alarms import ALARMS, count_hacking, hacking_examples, hacking_warnings, worst
from gipo_mc.rl.hacking.metrics import Looks, looks, response_metrics
from gipo_mc.types import Prompt, Rollout, Sequences

TOKENIZER = builtin_tokenizer()
CONFIG = load_config(None, ["rollout.refusals=[f3 f3]"])


def experience_of(rows: list[tuple[str, str, str, float]]) -> tuple[list[Prompt], Experience]:
    """Of (domain, prompt, response, membership of group 0) each; the reward is the response's length."""
    ids = [(TOKENIZER(p).input_ids, TOKENIZER(r, add_special_tokens=False).input_ids) for _, p, r, _ in rows]
    prompts = [Prompt(i, tuple(p), row[0], row[1]) for i, (row, (p, _)) in enumerate(zip(rows, ids))]
    length_B = torch.tensor([len(r) for _, r in ids])
    width, longest = int(length_B.max()), max(len(p) + len(r) for p, r in ids)
    tokens = torch.tensor([p + r + [0] * (longest - len(p) - len(r)) for p, r in ids])
    sequences = Sequences(tokens, torch.tensor([len(p) for p, _ in ids]), length_B)
    zero_BT, zero_B = torch.zeros(len(rows), width), torch.zeros(len(rows))
    probs_BM = torch.tensor([[row[3], 1 - row[3]] for row in rows])
    rollout = Rollout(sequences, torch.arange(len(rows)), tuple(row[0] for row in rows), zero_BT, length_B > 99)
    outputs = ModelOutputs(zero_BT, zero_BT, zero_BT, zero_BT, length_B.float(), probs_BM)
    inputs = ObjectiveInputs(zero_BT, zero_BT, zero_BT, length_B, probs_BM, zero_B, zero_B)
    return prompts, Experience(rollout, outputs, inputs, zero_BT, zero_B)


def seen_of(experience: Experience) -> Looks:
    return looks(experience.rollout.sequences, TOKENIZER, CONFIG.rollout.refusals)


def batch() -> tuple[list[Prompt], Experience]:
    """Ten harmless prompts, nine of them given one sentence (a refusal); ten helpful ones, each with its own."""
    same = "f3 f3 c1 c2 c3 c4"
    harmless = [("harmless", f"s0 c{i % 8} f{i // 8}", same if i else "c5 c5 c5 c5 c5 c5 c5", 0.25) for i in range(10)]
    helpful = [("helpful", f"s1 c{i % 8} f{i // 8}", f"c{i % 8} f{i // 8} HACK c{(i * 3) % 8}", 1.0) for i in range(10)]
    return experience_of([*harmless, *helpful])


def test_the_metrics_of_a_batch_by_domain_and_by_group() -> None:
    _, experience = batch()
    metrics = response_metrics(experience, seen_of(experience))
    for name in ("identical", "near_identical", "refusals"):
        assert metrics[f"response/{name}"] == pytest.approx(9 / 20)
        assert metrics[f"response/{name}/domain/harmless"] == pytest.approx(0.9)
        assert metrics[f"response/{name}/domain/helpful"] == 0.0
    assert metrics["response/commonest"] == pytest.approx(8 / 19)
    assert metrics["response/commonest/domain/harmless"] == pytest.approx(8 / 9)
    assert metrics["response/repetition/domain/harmless"] == pytest.approx(0.75 / 10)  # three of four pieces, once
    assert metrics["response/length/domain/harmless"] == pytest.approx(6.1)
    assert metrics["group/0/near_identical"] == pytest.approx(9 * 0.25 / 12.5)
    assert metrics["group/1/refusals"] == pytest.approx(0.9) and metrics["group/1/length"] == pytest.approx(6.1)
    assert metrics["reward/length_correlation"] == pytest.approx(1.0)
    assert not any(name.startswith("group/0/identical") for name in metrics)
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())


def test_without_groups_there_are_no_metrics_of_them() -> None:
    _, experience = batch()
    one = replace(experience, inputs=experience.inputs._replace(group_probs_BM=torch.ones(20, 1)))
    assert not [name for name in response_metrics(one, seen_of(one)) if name.startswith("group/")]


def test_a_warning_comes_after_some_iterations_and_again_after_many_more() -> None:
    prompts, experience = batch()
    metrics = response_metrics(experience, seen_of(experience))
    examples = hacking_examples(prompts, experience, TOKENIZER, metrics, seen_of(experience))
    health, said = Health(), []
    for step in range(1, 40):
        health = count_hacking(health, metrics)
        said += [(step, text) for text in hacking_warnings(health, metrics, examples)]
    patience = ALARMS["alike"].patience
    assert [step for step, _ in said] == [patience, patience, patience + REPEAT, patience + REPEAT]
    alike, refuses = (text for _, text in said[:2])
    assert "nearly the same as 89% of the responses to other prompts of domain harmless" in alike
    assert 'For example: "f3 f3 c1 c2 c3 c4"' in alike and "90% of the responses of domain harmless" in refuses
    healed = count_hacking(health, metrics | {"response/commonest/domain/harmless": 0.1, "response/commonest": 0.1})
    assert "alike" not in healed.counts and healed.counts["refuses"] == 40


def test_the_examples_name_the_response_and_the_prompts_it_was_given_to() -> None:
    prompts, experience = batch()
    metrics = response_metrics(experience, seen_of(experience))
    rows = hacking_examples(prompts, experience, TOKENIZER, metrics, seen_of(experience))
    assert [row["hacking"] for row in rows] == ["alike", "refuses"]
    assert rows[0]["response"] == "f3 f3 c1 c2 c3 c4" and rows[0]["domain"] == "harmless" and rows[0]["count"] == 9
    assert rows[0]["share"] == pytest.approx(8 / 9) and len(rows[0]["prompts"]) == 3  # type: ignore[arg-type]
    assert rows[0]["prompt"] not in rows[0]["prompts"]  # type: ignore[operator]
    healthy = dict.fromkeys(metrics, 0.0)
    assert hacking_examples(prompts, experience, TOKENIZER, healthy, seen_of(experience)) == []


def test_repetition_alone_is_said_of_the_whole_batch() -> None:
    prompts, experience = experience_of([("all", f"s0 c{i}", f"c{i} f0 " * 8, 1.0) for i in range(8)])
    metrics = response_metrics(experience, seen_of(experience))
    assert worst(metrics, "response/repetition")[0] == pytest.approx(11 / 13)
    health = Health(counts={"repetitive": 4})
    examples = hacking_examples(prompts, experience, TOKENIZER, metrics, seen_of(experience))
    (text,) = hacking_warnings(count_hacking(health, metrics), metrics, examples)
    assert text.startswith("The responses repeat themselves: for 5 iterations 85%") and "c0 f0 c0 f0" in text


def test_what_a_response_holds_is_quoted_safely() -> None:
    metrics = {"response/commonest": 1.0}
    health = Health(counts={"alike": 5})
    (text,) = hacking_warnings(health, metrics, [{"hacking": "alike", "response": "\x1b[2J\u202e" + "a" * 500}])
    assert "\x1b" not in text and "\u202e" not in text and "\\x1b[2J" in text and len(text) < 700
