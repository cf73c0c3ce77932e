"""The pictures of learned reward models, drawn from their records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies import pictures
from benchmarks.studies.cells import Record, average, title
from benchmarks.studies.learned.tables import runs_by_strength
from benchmarks.studies.paired import levels

Curve = list[dict[str, float]]
Line = tuple[list[float], list[float]]

#: The panels of a strength of reward model: figure of a curve -> title, and the KL that goes with it.
FIGURES = {"hard": "gold, hard domain", "easy": "gold, easy domain", "reward": "what the reward model says"}
_KL = {"hard": "kl_hard", "easy": "kl_easy", "reward": "kl"}
#: What pictures are drawn over.
AXES = {"iterations": "iteration", "kl": "KL to the reference, nats a response"}
#: What reads gains over the reference has the colour of what reads rewards and is otherwise the same, dashed.
_READ_GAINS = {
    "gi_ppo_gain": "gi_ppo", "gi_ppo_gain_prompt": "gi_ppo_prompt", "oracle_gain": "oracle_gi_ppo",
    "threshold_gain": "threshold_gi_ppo", "ensemble_gain": "ensemble",
}  # fmt: skip
_COLOURS = {**pictures.COLOURS, "threshold_gi_ppo": "#17becf"}
#: For methods that no picture has a colour for, in their order in the record.
_MORE = ("#9467bd", "#2ca02c", "#d62728", "#98df8a", "#ff9896", "#aec7e8", "#c5b0d5", "#c49c94", "#7f7f7f")

#: Methods whose seeds can be told apart in one panel.
_TELLABLE = 8


def draw(record: Record, folder: Path, name: str) -> None:
    """<name>_over_{iterations,kl}.png in `folder`; of a study also <name>_{differences,groups}.png, for which an
    exploration has too few seeds."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    for axis in AXES:
        regime(record, folder / f"{name}_over_{axis}.png", axis)
    if not record.get("exploration"):
        pictures.forest(record, folder / f"{name}_differences.png")
        pictures.groups(record, folder / f"{name}_groups.png")


def regime(record: Record, path: Path, axis: str) -> None:
    """Gold of both trained domains and the reward model's own mean over the training, a row of panels for each strength
    of reward model, the mean over seeds thick and, of few methods, each seed thin. Where the reward goes on to rise and
    gold falls, the reward model is over-optimised. axis: one of AXES."""
    from matplotlib import pyplot as plt

    found, own = curves(record), styles(record["methods"])
    height = 1.95 * len(found) + 1 if len(found) > 1 else 4.2
    figure, axes = plt.subplots(len(found), len(FIGURES), figsize=(11, height), sharex="row", squeeze=False)
    for panels, (strength, methods) in zip(axes, found.items(), strict=True):
        for panel, shown in zip(panels, FIGURES, strict=True):
            for name, seeds in methods.items():
                lines = [line(curve, shown, axis) for curve in seeds]
                for x, y in lines if len(lines) > 1 and len(methods) <= _TELLABLE else []:
                    panel.plot(x, y, **own[name], linewidth=0.6, alpha=0.35)
                panel.plot(
                    *mean_line(lines), **own[name], marker=".", markersize=4, linewidth=1.4, label=title(record, name)
                )
            panel.grid(linewidth=0.4, alpha=0.5)
        panels[0].set_xlim(left=0)  # of all panels in the row
        panels[0].set_ylabel(f"{strength}\ngold reward", fontsize=9)
        panels[-1].set_ylabel("reward over SFT's", fontsize=9)
    for column, (heading, shown) in enumerate(zip(FIGURES.values(), FIGURES, strict=True)):
        axes[0, column].set_title(heading, fontsize=10)
        axes[-1, column].set_xlabel(AXES[axis], fontsize=9)
        if shown != "reward":  # a reward model's scale is its own, gold has one
            limits = [panel.get_ylim() for panel in axes[:, column]]
            for panel in axes[:, column]:
                panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    named = {
        text: handle for panel in axes[:, 0] for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    lines_of_names = -(-len(named) // 4)
    figure.legend(named.values(), named, loc="upper center", ncol=4, fontsize=8, frameon=False)
    pictures.save(figure, path, above=(0.22 * lines_of_names + 0.1) / figure.get_figheight())


def curves(record: Record) -> dict[str, dict[str, list[Curve]]]:
    """strength -> method -> a curve for each seed that did not fail. A point holds the figures of `paired.levels`, its
    iteration (steps on pairs are spread over the iterations of RL), and the reward's mean over the trained domains
    less that of the start, since the level of a Bradley-Terry model is arbitrary."""
    last = record["size"]["iterations"]
    return {
        strength: {method: [_curve(run["curve"], last) for run in runs] for method, runs in methods.items()}
        for strength, methods in runs_by_strength(record).items()
    }


def _curve(rows: Sequence[Mapping[str, float]], last: int) -> Curve:
    points = [levels(row) for row in rows]
    return [
        {
            **point,
            "iterations": last * row["step"] / rows[-1]["step"],
            "reward": point["proxy"] - points[0]["proxy"],
        }
        for row, point in zip(rows, points, strict=True)
    ]


def line(curve: Curve, shown: str, axis: str) -> Line:
    """x and y of a curve in the panel of a figure; over KL, that of the same responses."""
    along = _KL[shown] if axis == "kl" else axis
    return [point[along] for point in curve], [point[shown] for point in curve]


def mean_line(lines: Sequence[Line]) -> Line:
    """The mean over lines, point by point."""
    xs, ys = zip(*lines, strict=True)
    return [average(x) for x in zip(*xs, strict=True)], [average(y) for y in zip(*ys, strict=True)]


def styles(methods: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Colour and stroke of each method."""
    taken = {_COLOURS.get(name) for name in methods}
    free = (colour for colour in _MORE if colour not in taken)
    plain = {name: _COLOURS.get(name) or next(free, "#777777") for name in methods if name not in _READ_GAINS}
    colours = {**_COLOURS, **plain}
    return {
        name: {
            "color": colours.get(_READ_GAINS.get(name, name), "#777777"),
            "linestyle": "-" if name in plain else "--",
        }
        for name in methods
    }
