"""Several reward models as one reward: numbers by hand."""

from __future__ import annotations

import torch

from gipo_mc.rl.learned.ensemble import conservative


def test_the_mean_less_the_standard_deviations() -> None:
    members_KB = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 1.0]])
    reward_B, disagreement_B = conservative(members_KB, 2.0)
    assert disagreement_B.tolist() == [1.0, 0.0, 0.5]
    assert reward_B.tolist() == [0.0, 2.0, -0.5]
    assert conservative(members_KB, 0.0)[0].tolist() == [2.0, 2.0, 0.5]


def test_the_level_of_a_prompt_is_no_disagreement() -> None:
    """Adding to each model what it likes, prompt by prompt, changes what the policy is paid by a constant a prompt."""
    members_KB = torch.randn(4, 6, dtype=torch.float64)
    level_KB = torch.randn(4, 3, dtype=torch.float64).repeat_interleave(2, dim=1)
    before_B, spread_B = conservative(members_KB, 1.5, torch.zeros_like(members_KB))
    after_B, same_B = conservative(members_KB + level_KB, 1.5, level_KB)
    torch.testing.assert_close(same_B, spread_B)
    torch.testing.assert_close(after_B - before_B, level_KB.mean(0))
    assert not torch.allclose(conservative(members_KB + level_KB, 1.5)[1], spread_B)
