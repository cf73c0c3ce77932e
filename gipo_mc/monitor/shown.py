"""Which curves a monitor shows, in terminal and page alike: the few that tell whether a run is well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gipo_mc.report.catalogue import REWARD_UNIT
from gipo_mc.report.drawing.colours import domain_colours, group_colour, run_colour
from gipo_mc.report.drawing.plots import Curve
from gipo_mc.report.runs import RunData


@dataclass(frozen=True)
class Chart:
    """title, unit: of the curves. metrics: (name, label); `*` stands for a group or a domain. Of several runs the first
    alone is shown, in each run's colour."""

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]


_RL = (
    Chart("Reward", REWARD_UNIT, (("reward/mean", "mean"), ("worst/domain_reward", "worst domain"))),
    Chart("Gold reward", "gold reward", (("gold/mean", "mean"), ("worst/domain_gold", "worst domain"))),
    Chart("KL to the reference", "nats per response", (("kl/mean", "KL"),)),
    Chart("Reward by group", REWARD_UNIT, (("group/*/reward", ""),)),
    Chart("Response length", "tokens", (("response/length", "length"),)),
    Chart("Held-out reward", REWARD_UNIT, (("eval/reward/mean", "held out"),)),
    Chart("Reward by domain", REWARD_UNIT, (("reward/domain/*", ""),)),
    Chart("Variance between groups", "R_var", (("group/variance", "R_var"),)),
    Chart(
        "Signs of hacking",
        "share of responses",
        (
            ("response/commonest", "one answer"),
            ("response/repetition", "repetition"),
            ("response/refusals", "refusals"),
        ),
    ),
    Chart("Mass of the groups", "share of responses", (("group/*/mass", ""),)),
    Chart("Entropy", "nats per token", (("policy/entropy", "entropy"),)),
    Chart("Critic's explained variance", "share", (("critic/explained_variance", "explained"),)),
    Chart("Clipped tokens", "share of tokens", (("policy/clip_fraction", "clipped"),)),
    Chart("Gradient norms", "norm", (("policy/grad_norm", "policy"), ("critic/grad_norm", "critic"))),
    Chart("Throughput", "tokens per second", (("throughput/tokens_per_second", "tokens/s"),)),
)
_SUPERVISED = (
    Chart("Loss", "loss", (("loss", "train"), ("eval/loss", "held out"))),
    Chart("Accuracy", "share right", (("accuracy", "train"), ("eval/accuracy", "held out"))),
    Chart("Margin", "reward", (("margin", "train"), ("eval/margin", "held out"))),
    Chart("Implicit rewards", "reward", (("reward/chosen", "chosen"), ("reward/rejected", "rejected"))),
    Chart("Gradient norm", "norm", (("grad_norm", "norm"),)),
    Chart("Learning rate", "learning rate", (("lr", "lr"),)),
    Chart("Throughput", "tokens per second", (("throughput/tokens_per_second", "tokens/s"),)),
)


def charts(runs: Sequence[RunData]) -> list[tuple[str, str, list[Curve]]]:
    """(title, unit, curves) of what the runs have, the most telling first; of runs of different kinds, of all kinds."""
    tables = [_RL] * any(run.kind == "rl" for run in runs) + [_SUPERVISED] * any(run.kind != "rl" for run in runs)
    found = []
    for chart in (chart for table in tables for chart in table):
        of_kind = [run for run in runs if (run.kind == "rl") == (chart in _RL)]
        drawn = _of_one(chart, runs[0]) if len(runs) == 1 else _of_several(chart, runs, of_kind)
        if drawn:
            found.append((chart.title, chart.unit, drawn))
    return found


def _of_one(chart: Chart, run: RunData) -> list[Curve]:
    found = []
    for at, (name, label) in enumerate(chart.metrics):
        if "*" not in name:
            found += _curve(run, name, label, run_colour(at))
            continue
        prefix, suffix = name.split("*")
        domains = domain_colours([run])
        for key in run.keys(prefix, suffix):
            label = f"group {key}" if prefix == "group/" else key
            colour = group_colour(key) if prefix == "group/" else domains.get(key, "#8795a1")
            found += _curve(run, f"{prefix}{key}{suffix}", label, colour)
    return found


def _of_several(chart: Chart, runs: Sequence[RunData], of_kind: Sequence[RunData]) -> list[Curve]:
    name = chart.metrics[0][0]
    if "*" in name:  # groups of different runs do not correspond
        return []
    return [
        curve for at, run in enumerate(runs) if run in of_kind for curve in _curve(run, name, run.name, run_colour(at))
    ]


def _curve(run: RunData, name: str, label: str, colour: str) -> list[Curve]:
    if not len(run.values(name)):
        return []
    there = np.isfinite(run.series[name])
    return [Curve(label, run.steps[there], run.series[name][there], colour, mark=run.mark)]
