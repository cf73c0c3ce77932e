"""`gipo-mc`: which verbs there are, and where each of them is done.

A verb is a module with `main(words) -> exit code`, imported when it is asked for; `parsers()` gives the parser of each
of its sub-commands ("" where it has none), for completion. torch takes seconds to import: a module does so once its
arguments have been read and checked.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from gipo_mc import __version__
from gipo_mc.run.arguments import Parser
from gipo_mc.run.terminal.ending import ended

_VERBS = "gipo_mc.tools.verbs."


@dataclass(frozen=True)
class Verb:
    """module: where `main` is. help: what it does, a clause. example: a whole command."""

    module: str
    help: str
    example: str


#: What people come for -> the verbs for it, in the order in which they are needed.
GROUPS: dict[str, dict[str, Verb]] = {
    "See it work": {
        "demo": Verb(_VERBS + "demo", "the whole pipeline on the built-in task, and its report", "gipo-mc demo"),
        "doctor": Verb(_VERBS + "doctor", "what this machine has, and what is missing", "gipo-mc doctor"),
        "completion": Verb(
            _VERBS + "completion", "completion by your shell's tabulator", 'eval "$(gipo-mc completion bash)"'
        ),
    },
    "Train": {
        "train": Verb(
            _VERBS + "train",
            "GI-PPO and its baselines, SFT, a reward model, or DPO",
            "gipo-mc train gi-ppo --config configs/hh_tiny.yaml",
        ),
        "launch": Verb(
            _VERBS + "launch",
            "the torchrun line or Slurm script for GPUs and nodes",
            "gipo-mc launch --nodes 4 --gpus 8 --config configs/paper/hh_rl.yaml",
        ),
        "new-model": Verb(
            _VERBS + "new_model",
            "a small model with random weights, for trying things",
            "gipo-mc new-model --out models/tiny --data train.jsonl.gz",
        ),
        "monitor": Verb(
            "gipo_mc.tools.verbs.monitor",
            "follow runs while they go on, here or on a page",
            "gipo-mc monitor runs/gi_ppo",
        ),
        "status": Verb(_VERBS + "status", "how a run stands, and its exit code", "gipo-mc status runs/gi_ppo"),
    },
    "Before it starts": {
        "config": Verb(
            "gipo_mc.tools.verbs.config",
            "what a configuration says, and whether it is right",
            "gipo-mc config show configs/hh_tiny.yaml --only-changed",
        ),
        "plan": Verb(
            _VERBS + "plan",
            "memory, disk, communication and time of a run",
            "gipo-mc plan --config configs/paper/hh_rl.yaml --gpus 8",
        ),
        "dry-run": Verb(
            "gipo_mc.tools.dry_run.command",
            "a start without its GPUs: would it start?",
            "gipo-mc dry-run --config configs/paper/hh_rl.yaml --gpus 8 --without-files",
        ),
    },
    "Use and compare": {
        "generate": Verb(
            _VERBS + "generate",
            "sample from a model, a run or a checkpoint",
            'gipo-mc generate model.policy=runs/gi_ppo --prompt "Say something kind."',
        ),
        "report": Verb(
            _VERBS + "report",
            "one HTML page of runs and evaluations",
            "gipo-mc report runs/ppo runs/gi_ppo --out compare.html",
        ),
        "evaluate": Verb(
            "gipo_mc.tools.evaluate.command", "who wins: judges, people, tables", "gipo-mc evaluate table runs/eval"
        ),
        "convert": Verb(
            _VERBS + "convert",
            "between Hugging Face folders and checkpoints, with proof",
            "gipo-mc convert --to-hf runs/gi_ppo models/trained",
        ),
        "paper": Verb(
            _VERBS + "paper", "the paper's table, from SFT to judges", "gipo-mc paper --config configs/paper/tiny.yaml"
        ),
    },
}

VERBS: dict[str, Verb] = {name: verb for group in GROUPS.values() for name, verb in group.items()}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return ended(lambda: _command(list(sys.argv[1:] if words is None else words)))


def first_parser() -> Parser:
    """Of the verb, and what may stand before it."""
    parser = Parser(
        prog="gipo-mc",
        usage="%(prog)s VERB ...",
        description="Group-Invariant PPO on Megatron-core: train, plan, compare.",
        epilog=_listed(),
    )
    parser.add_argument("--version", action="version", version=f"gipo-mc {__version__}", help="print the version")
    parser.add_argument("verb", choices=list(VERBS), metavar="VERB", help="one of those below")
    return parser


def _command(words: list[str]) -> int:
    parser = first_parser()
    if not words:
        parser.print_help()
        return 0
    found, rest = parser.up_to_verb(words)
    code: int = importlib.import_module(VERBS[found.verb].module).main(rest)
    return code


def _listed() -> str:
    """The verbs by group, each with what it does and an example."""
    width = max(map(len, VERBS))
    lines: list[str] = []
    for title, verbs in GROUPS.items():
        lines += ["", title]
        for name, verb in verbs.items():
            lines += [f"  {name:<{width}}  {verb.help}", f"  {'':<{width}}  $ {verb.example}"]
    return "\n".join([*lines[1:], "", "`gipo-mc VERB --help` tells the rest, docs/commands.md all of it."])
