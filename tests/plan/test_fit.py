"""Whoever starts a run can ask whether it fits."""

from __future__ import annotations

import pytest

from gipo_mc.config import load_config
from gipo_mc.errors import ConfigError
from gipo_mc.plan.fit import misfit
from tests.source_rules import ROOT

EIGHT_B = str(ROOT / "configs/large/llama3_8b_rl.yaml")


def test_a_layout_fits_or_says_why_it_does_not() -> None:
    config = load_config(EIGHT_B, [])
    assert misfit(config, "train_gi_ppo", 8, config_file=EIGHT_B) == []
    (said,) = misfit(load_config(EIGHT_B, ["parallel.tensor=2"]), "train_gi_ppo", 8, config_file=EIGHT_B)
    assert said.startswith("It does not fit: ") and "of a GPU's 79.1 GiB" in said
    assert misfit(load_config(EIGHT_B, ["parallel.tensor=2"]), "", 8, gpu="b200", config_file=EIGHT_B) == []


def test_what_cannot_be_judged_is_an_error() -> None:
    with pytest.raises(ConfigError, match="does not divide the 6 ranks"):
        misfit(load_config(EIGHT_B, []), "train_gi_ppo", 6, config_file=EIGHT_B)
    with pytest.raises(ConfigError, match="--shape"):
        misfit(load_config(EIGHT_B, ["model.policy=runs/none"]), "train_gi_ppo", 8, config_file=EIGHT_B)
