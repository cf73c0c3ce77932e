"""The runs that the tests of the report share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.fake_runs import rl_run, supervised_run


class Runs(dict[str, Path]):
    """Run folders by name, each written when a test first asks for it."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.writers = {
            "gi_ppo": lambda: rl_run(root, "gi_ppo", "gi_ppo", 40),
            "ppo": lambda: rl_run(root, "ppo", "ppo", 30, seed=3),
            "hacked": lambda: rl_run(root, "hacked", "ppo_no_kl", 12),
            "plain": lambda: rl_run(root, "plain", "gi_ppo", 2, gold=False),
            "sft": lambda: supervised_run(root, "sft", "train_sft", 20),
            "reward": lambda: supervised_run(root, "reward", "train_reward", 20),
            "dpo": lambda: supervised_run(root, "dpo", "train_dpo", 20),
        }

    def __missing__(self, name: str) -> Path:
        self[name] = self.writers[name]()
        return self[name]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))
