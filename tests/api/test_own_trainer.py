"""The part of docs/library.md about the ops in a trainer of one's own: its blocks run by themselves, and what it says
of them holds."""

from __future__ import annotations

import re
from typing import Any

import torch

import gipo_mc
from tests.source_rules import ROOT


def blocks_of_the_part(count: int) -> dict[str, Any]:
    """The names after the first `count` blocks."""
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    part = text[text.index("## The three ops in your own trainer") : text.index("## Processes, ranks, notebooks")]
    names: dict[str, Any] = {"gipo_mc": gipo_mc}
    torch.manual_seed(3)
    for block in re.findall(r"^```python\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)[:count]:
        exec(compile(block, "library.md", "exec"), names)
    return names


def test_gradients_of_micro_batches_add_up_to_those_of_the_whole() -> None:
    """The page's two blocks, where R_var of each micro-batch by itself, added up, would be another gradient."""
    names = blocks_of_the_part(2)  # the second compares the two gradients itself
    assert len(names["micro_batches"]) == 2 and names["whole_gradient"].abs().max() > 0
    naive = names["logp"].detach().clone().requires_grad_()
    names["logp"] = naive
    for rows in names["micro_batches"]:
        objective = names["objective_of"](rows)
        share = len(rows) / names["batch"]
        between = gipo_mc.group_variance(objective.mass_M, objective.weighted_M, len(rows), weights="size").variance
        (0.3 * share * between + (objective.weighted_kl - objective.surrogate_B.sum()) / names["tokens"]).backward()
    assert not torch.allclose(naive.grad, names["whole_gradient"], rtol=1e-2)


def test_tokens_behind_gaps_count_once_the_gaps_are_closed() -> None:
    names = blocks_of_the_part(3)
    mask, advantage = names["mask"], names["advantage"]
    ratio = (names["logp"] - names["behaviour"]).exp()
    kept = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) * mask
    kl = (names["logp"] - names["reference"]).square() / 2 * mask
    torch.testing.assert_close(names["objective"].surrogate_B, kept.sum(1))
    torch.testing.assert_close(names["objective"].kl_B, kl.sum(1))
