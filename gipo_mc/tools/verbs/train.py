"""Train a model: with GI-PPO or one of its baselines, on demonstrations, as a reward model, or on preference pairs.

    gipo-mc train gi-ppo run.name=mine
    torchrun --nproc-per-node 4 -m gipo_mc train gi-ppo --config configs/hh_tiny.yaml parallel.tensor=2

Without any argument each trainer does the built-in task. `gipo-mc train gi-ppo --help` lists the options that it reads;
`gipo-mc launch` writes the torchrun line for several GPUs or nodes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from gipo_mc.config import Config
from gipo_mc.run.arguments import Parser
from gipo_mc.run.command import command_parser, run_command
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.waiting import importing
from gipo_mc.tools import builtin

_BUILTIN = "Without any argument: the built-in task, sized to the ranks and the device there are."


@dataclass(frozen=True)
class Trainer:
    """command: its name in run folders and configurations. module: where its `train` is. task: the built-in one. does:
    what it does, a sentence."""

    command: str
    module: str
    task: builtin.BuiltinTask
    does: str

    @property
    def description(self) -> str:
        return f"{self.does}\n\n{_BUILTIN}"


TRAINERS = {
    "gi-ppo": Trainer(
        "train_gi_ppo",
        "gipo_mc.rl.gi_ppo",
        builtin.GI_PPO,
        "Train a policy with Group-Invariant PPO, or with one of its baselines, controls and oracles (algorithm.name).",
    ),
    "sft": Trainer(
        "train_sft",
        "gipo_mc.supervised.sft",
        builtin.SFT,
        "Fine-tune a model on demonstrations (supervised, token cross entropy on the responses).",
    ),
    "reward": Trainer(
        "train_reward",
        "gipo_mc.supervised.reward_model",
        builtin.REWARD,
        "Train a reward model on preference pairs (Bradley-Terry).",
    ),
    "dpo": Trainer(
        "train_dpo",
        "gipo_mc.supervised.dpo",
        builtin.DPO,
        "Train a policy on preference pairs against a frozen reference (DPO, conservative DPO or IPO: dpo.loss), if "
        "wanted\nweighted by group (group-DPO: dpo.groups_from).",
    ),
}


def parsers() -> dict[str, Parser]:
    return {name: command_parser(trainer.description, trainer.command) for name, trainer in TRAINERS.items()}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return ended(lambda: _train(list(sys.argv[1:] if words is None else words)))


def _train(words: list[str]) -> int:
    listed = "\n".join(f"  {name:<7} {trainer.does.splitlines()[0]}" for name, trainer in TRAINERS.items())
    parser = Parser("train", description=__doc__, usage="%(prog)s TRAINER ...", epilog=f"trainers:\n{listed}")
    parser.add_argument("trainer", choices=list(TRAINERS), metavar="TRAINER", help="one of those below")
    found, rest = parser.up_to_verb(words)
    trainer = TRAINERS[found.trainer]

    def work(config: Config) -> None:
        with importing():  # once the configuration is known to be right
            module = importlib.import_module(trainer.module)
        module.train(config)

    return run_command(trainer.description, work, argv=rest, builtin=trainer.task, command=trainer.command)
