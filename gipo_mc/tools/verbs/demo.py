"""The whole pipeline on the built-in task, as a user would run it: SFT on data-parallel ranks, a reward model in a
pipeline, PPO, and GI-PPO with tensor and pipeline parallelism, on this machine's CPU or GPUs; then one report that
compares the last two and says what the comparison is worth.

Every step is one of the commands below, printed before it runs; run again, it continues where it stopped.
"""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gipo_mc.errors import EXIT_INTERRUPTED, EXIT_REQUEUE
from gipo_mc.run.arguments import Parser, name, number
from gipo_mc.run.jsonl import encode, printable, write_atomically
from gipo_mc.run.saves.places import steps as saved_steps
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.voice import is_quiet, tell
from gipo_mc.tools import libraries
from gipo_mc.tools.builtin import PPO
from gipo_mc.tools.commands import attempt, gipo_mc, launched, shown, trainer

if TYPE_CHECKING:
    from gipo_mc.report.runs import RunData

#: Iterations of GI-PPO on four ranks. On two cores these take four times as long as on one rank, which does the others.
SHARED = 10
MOST_RANKS = 4
#: Domains of the training prompts. The worst domain is one of them.
TRAINED = ("easy", "hard")
REGIME = (
    "The reward here is the task's own proxy, a noisy function that pays for a habit the gold reward punishes; the "
    "reward model that the demo trains is shown beside it and rewards nothing. Each method has the settings that the "
    "study in docs/results/builtin.md tuned for it, for 100 iterations. The first iterations of GI-PPO ran on four "
    "ranks, TP2 x PP2; its others, and PPO, on one."
)
EVIDENCE = (
    "One seed says little. Over ten seeds (docs/results/demo.md) GI-PPO minus PPO is +0.143 ± 0.036 on the worst "
    "domain (ahead in 10 of 10 seeds), +0.058 ± 0.027 out of domain (9 of 10) and +0.075 ± 0.021 on the mean of "
    "easy and hard (10 of 10), with 95 % intervals; its KL on their held-out prompts is 3.935 nats and PPO's 2.372, "
    "and larger in 10 of 10 seeds. The study beside it (docs/results/builtin.md) has baselines, "
    "controls and oracles on ten other seeds: the gain is the variance penalty's, and on this mixture of prompts "
    "groups of high and low reward gain as much without a classifier. The reward is not the learned model because "
    "with one GI-PPO was at most a little ahead of PPO over ten seeds (docs/results/learned.md), and not on HH-RLHF "
    "rows: a demo of one seed would show chance."
)


class Command(NamedTuple):
    """A trainer of a step. name: what its lines begin with, where another runs beside it."""

    name: str
    ranks: int
    trainer: str
    overrides: list[str]

    def words(self, *common: str) -> list[str]:
        return launched([*trainer(self.trainer), *common, *self.overrides], self.ranks)


def steps(folder: Path, iterations: int) -> Iterator[tuple[str, list[Command]]]:
    """(what, commands) of each step that is left or has to be looked at; commands of one step run side by side."""
    rl = [f"run.iterations={iterations}"] if iterations else []
    ppo = Command("PPO   ", 1, "train_gi_ppo", [*PPO, "run.name=builtin_ppo", *rl])
    yield "supervised fine-tuning, two data-parallel ranks", [Command("", 2, "train_sft", ["parallel.tensor=1"])]
    pipeline = ["parallel.tensor=1", "parallel.pipeline=2"]
    yield "reward model, a pipeline of two", [Command("", 2, "train_reward", pipeline)]
    first = min(SHARED, iterations or SHARED)
    if max(saved_steps(folder / "builtin_gi_ppo" / "checkpoints"), default=0) < first:
        shared = Command("", MOST_RANKS, "train_gi_ppo", [f"run.iterations={first}"])
        yield f"GI-PPO, {first} iterations with TP2 x PP2", [shared]
    if iterations == first:
        yield "PPO with KL penalty", [ppo]
    else:
        what = "PPO with KL penalty; beside it GI-PPO, going on from its checkpoint; one rank each"
        yield what, [ppo, Command("GI-PPO", 1, "train_gi_ppo", rl)]


def parsers() -> dict[str, Parser]:
    parser = Parser("demo", reports=True, description=__doc__)
    parser.add_argument("--dir", type=name, default="runs", help="folder for the runs [runs]")
    parser.add_argument("--iterations", type=number(0, 10**9), default=0, help="RL iterations [the built-in task's]")
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return ended(lambda: _demo(parsers()[""].parse_args(words)))


def _demo(options: argparse.Namespace) -> int:
    folder = Path(options.dir)
    begin = time.monotonic()
    # One GPU for a rank. A machine with fewer shows the same on its CPU cores, and all of it there: a run that goes on
    # with other ranks keeps its device's number type.
    device = "cuda" if len(libraries.look().gpus) >= MOST_RANKS else "cpu"
    to_do = list(steps(folder, options.iterations))
    for number_of, (what, commands) in enumerate(to_do, start=1):
        of_step = [command.words(f"run.dir={folder}", f"device={device}") for command in commands]
        names = [command.name for command in commands if len(commands) > 1]
        if code := _step(f"{number_of} of {len(to_do) + 1}: {what}", of_step, names, options.json):
            return code
    from gipo_mc.report.runs import load_run

    found = comparison(load_run(folder / "builtin_ppo"), load_run(folder / "builtin_gi_ppo"))
    note, report = folder / "demo.txt", folder / "report.html"
    write_atomically(note, "\n\n".join([found, REGIME, EVIDENCE]) + "\n")
    runs = ("builtin_ppo", "builtin_gi_ppo", "builtin_reward", "builtin_sft")
    command = launched([*gipo_mc("report"), *(str(folder / run) for run in runs)], 1)
    command += ["--note", str(note), "--out", str(report)]
    code = _step(f"{len(to_do) + 1} of {len(to_do) + 1}: report", [command], [], options.json)
    if not code and options.json:
        seconds = round(time.monotonic() - begin, 1)
        print(encode({"report": str(report), "runs": [str(folder / run) for run in runs], "seconds": seconds}))
    elif not code:
        print("\n" + "\n".join(textwrap.fill(line, 100) for line in note.read_text(encoding="utf-8").splitlines()))
        print(f"\nDone in {(time.monotonic() - begin) / 60:.1f} minutes. Open {printable(str(report.resolve()))}")
    return code


def _step(what: str, commands: list[list[str]], names: list[str], aside: bool) -> int:
    """Run the commands of a step. Returns the exit code, with a word on what is to be done where it is not 0. aside:
    what they print goes to stderr."""
    if is_quiet():
        commands = [[*command, "--quiet"] for command in commands]
    tell(f"\n=== {what}\n" + "\n".join(map(shown, commands)))
    code, asked = attempt(*commands, names=names, aside=aside)
    if asked:
        print("\nStopped as asked. What is finished is kept; the same command goes on from here.", file=sys.stderr)
        return EXIT_INTERRUPTED if asked == signal.SIGINT else EXIT_REQUEUE
    if code:
        print(f"\nerror: {what} ended with exit code {code}; its message stands above.", file=sys.stderr)
    return code


def comparison(ppo: RunData, gi_ppo: RunData) -> str:
    """What the last evaluations of the two runs found, in words: the figures of the table over ten seeds, each once,
    and what KL the policies have at the end."""
    golds = [{d: float(run.values(f"gold/domain/{d}")[-1]) for d in (*TRAINED, "ood")} for run in (ppo, gi_ppo)]
    worst = [min(TRAINED, key=lambda domain: gold[domain]) for gold in golds]
    rows = {
        f"worst domain ({' and '.join(dict.fromkeys(worst))})": [
            gold[at] for gold, at in zip(golds, worst, strict=True)
        ],
        f"mean of {' and '.join(TRAINED)}": [sum(gold[d] for d in TRAINED) / len(TRAINED) for gold in golds],
        "out of domain, never asked in training": [gold["ood"] for gold in golds],
    }
    lines = [
        f"GI-PPO beside PPO with KL penalty on the built-in task, seed {gi_ppo.option('run.seed')}, from one SFT "
        f"policy: gold reward, which training never sees, on held-out prompts after {gi_ppo.steps[-1]} iterations."
    ]
    lines += [f"{title}: PPO {a:.3f}, GI-PPO {b:.3f} ({b - a:+.3f})" for title, (a, b) in rows.items()]
    ahead = sum(b > a for a, b in rows.values())
    return "\n".join(
        [*lines, f"In this seed GI-PPO ends ahead of PPO on {ahead} of these {len(rows)}.", _distance(ppo, gi_ppo)]
    )


def _distance(ppo: RunData, gi_ppo: RunData) -> str:
    """How far the policies went from the reference, a sentence; the figures are those of the report's table."""
    near, far = (run.last("kl/mean") or 0.0 for run in (ppo, gi_ppo))
    text = f"At the end PPO is {near:.2f} nats a response away from the reference (KL) and GI-PPO {far:.2f}"
    if far > near:
        return f"{text}: a gain at a larger KL is not one at equal KL, where PPO might have come closer."
    return f"{text}: what GI-PPO gains, it does not gain by a larger KL."
