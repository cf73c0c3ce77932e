"""The part of docs/library.md about the ops in a trainer of one's own: its blocks run by themselves, and what it says
of them holds."""

from __future__ import annotations

import re
from typing import Any

import torch

import gipo_mc
from tests.source_rules import ROOT

_EXPRESSIONS = {
    "behaviour": "logp.detach() - 0.1",
    "beta": "0.3 * between",
    "length": "torch.tensor([5, 3, 4, 5])",
    "kl": "gipo_mc.kl_weights(0.05,",
    "weighted": "objective.mass_M, weighted,",
}


def blocks_of_the_part(count: int, **replaced: str) -> dict[str, Any]:
    """The names after the first `count` blocks. replaced: by what to replace an expression, by a name for it in
    `_EXPRESSIONS`."""
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    part = text[text.index("## The three ops in your own trainer") : text.index("## Processes, ranks, notebooks")]
    names: dict[str, Any] = {"gipo_mc": gipo_mc}
    torch.manual_seed(3)
    for name, expression in replaced.items():
        assert _EXPRESSIONS[name] in part
        part = part.replace(_EXPRESSIONS[name], expression)
    for block in re.findall(r"^```python\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)[:count]:
        exec(compile(block, "library.md", "exec"), names)
    return names


def test_gradients_of_micro_batches_add_up_to_those_of_the_whole() -> None:
    """The page's first two blocks, where R_var of each micro-batch by itself, added up, would be another gradient."""
    names = blocks_of_the_part(2)  # the second compares the two gradients itself
    assert len(names["micro_batches"]) == 2 and names["whole_gradient"].abs().max() > 0
    naive = names["logp"].detach().clone().requires_grad_()
    names["logp"] = naive
    for rows in names["micro_batches"]:
        objective = names["objective_of"](rows)
        share = len(rows) / names["batch"]
        weighted = names["weighted_of"](objective, rows)
        between = gipo_mc.group_variance(objective.mass_M, weighted, len(rows), weights="size").variance
        (0.3 * share * between + (objective.weighted_kl - objective.surrogate_B.sum()) / names["tokens"]).backward()
    assert not torch.allclose(naive.grad, names["whole_gradient"], rtol=1e-2)


def test_the_penalty_multiplies_each_response_s_gradient_by_its_weight() -> None:
    """What the page says of w_i, where PPO's ratios are 1, and of the op's own sum of the signals."""
    same = {"behaviour": "logp.detach()", "length": "torch.tensor([5, 1, 4, 5])", "kl": "gipo_mc.kl_weights(0.0,"}
    ppo = blocks_of_the_part(1, **same, beta="0.0 * between")["logp"].grad
    by_response = blocks_of_the_part(1, **same, weighted="objective.mass_M, objective.weighted_M,")
    by_token = blocks_of_the_part(1, **same)
    gap = by_token["between"].objective_M - by_token["between"].mean
    pull = 0.6 * (by_token["group_probs"] * gap).sum(1, keepdim=True).detach()
    torch.testing.assert_close(by_token["logp"].grad, (1 - pull) * ppo)
    length = by_token["length"][:, None]
    torch.testing.assert_close(by_response["logp"].grad, (1 - length.float().mean() / length * pull) * ppo)
    assert (pull.abs() > 0.01).any() and ppo.abs().max() > 0.01


def test_the_classifier_takes_a_step_towards_groups_that_differ_more() -> None:
    names = blocks_of_the_part(3)
    before, after = (
        gipo_mc.group_variance(p.sum(0), (p * names["signal"][:, None]).sum(0), names["batch"], weights="size").variance
        for p in (names["probs"], names["classifier"](names["features"]).softmax(dim=1))
    )
    assert after > before
    assert names["best_group"] == names["found"].objective_M.argmax() and not names["group_probs"].requires_grad
    gipo_mc.kl_weights(0.05, names["group_probs"], names["best_group"], "adaptive")


def test_tokens_behind_gaps_count_once_the_gaps_are_closed() -> None:
    names = blocks_of_the_part(4)
    mask, advantage = names["mask"], names["advantage"]
    ratio = (names["logp"] - names["behaviour"]).exp()
    kept = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) * mask
    kl = (names["logp"] - names["reference"]).square() / 2 * mask
    torch.testing.assert_close(names["objective"].surrogate_B, kept.sum(1))
    torch.testing.assert_close(names["objective"].kl_B, kl.sum(1))
