"""The part of docs/library.md about the ops in a trainer of one's own: its blocks run by themselves, and what it says
of them holds."""

from __future__ import annotations

import re
from typing import Any

import torch

import gipo_mc
from tests.source_rules import ROOT


def test_gradients_of_micro_batches_add_up_to_those_of_the_whole() -> None:
    """The page's two blocks, where R_var of each micro-batch by itself, added up, would be another gradient."""
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    part = text[text.index("## The three ops in your own trainer") : text.index("## Processes, ranks, notebooks")]
    whole, accumulated = re.findall(r"^```python\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)[:2]
    names: dict[str, Any] = {"gipo_mc": gipo_mc}
    torch.manual_seed(3)
    exec(compile(whole, "library.md", "exec"), names)
    exec(compile(accumulated, "library.md", "exec"), names)  # compares the two gradients itself
    assert len(names["micro_batches"]) == 2 and names["whole_gradient"].abs().max() > 0
    naive = names["logp"].detach().clone().requires_grad_()
    names["logp"] = naive
    for rows in names["micro_batches"]:
        objective = names["objective_of"](rows)
        share = len(rows) / names["batch"]
        between = gipo_mc.group_variance(objective.mass_M, objective.weighted_M, len(rows), weights="size").variance
        (0.3 * share * between + (objective.weighted_kl - objective.surrogate_B.sum()) / names["tokens"]).backward()
    assert not torch.allclose(naive.grad, names["whole_gradient"], rtol=1e-2)
