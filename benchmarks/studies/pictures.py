"""The pictures of a study, drawn from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.studies.cells import difference, outcomes, results
from benchmarks.studies.paired import interval
from benchmarks.studies.tables import COMPARED

COLOURS = {
    "ppo": "#444444", "ppo_no_kl": "#d62728", "mean_kl": "#8c564b", "threshold_kl": "#ff7f0e", "dpo": "#bcbd22",
    "gi_ppo": "#1f77b4", "gi_ppo_gain": "#1f77b4", "gi_ppo_prompt": "#2ca02c",
    "paper": "#9467bd", "oracle_gi_ppo": "#e377c2",
}  # fmt: skip
_CURVES = ("ppo", "ppo_no_kl", "threshold_kl", "gi_ppo", "gi_ppo_prompt", "dpo")
_DOMAINS = {
    "group_robustness": {"easy": "easy", "hard": "hard", "ood": "out of domain"},
    "hh_gold": {"harmless": "harmless", "helpful": "helpful"},
}
_GROUPED = ("gi_ppo", "gi_ppo_prompt", "gi_ppo_gain", "paper")


def draw(record: Mapping[str, Any], folder: Path, name: str) -> None:
    """<name>_{differences,over_optimisation,groups}.png in `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    forest(record, folder / f"{name}_differences.png")
    over_optimisation(record, folder / f"{name}_over_optimisation.png")
    groups(record, folder / f"{name}_groups.png")


def forest(record: Mapping[str, Any], path: Path) -> None:
    """Paired differences to PPO with their 95 % intervals, one panel a figure, a dot a seed."""
    from matplotlib import pyplot as plt

    found = results(record)
    names = [name for name in found if name not in ("ppo", "paper")]  # beside `paper` all others would be one dot
    titles = {figure: title for figure, title in COMPARED[record["benchmark"]].items() if figure != "mixture"}
    shown = list(titles)
    figure, axes = plt.subplots(1, len(shown), figsize=(11, 0.36 * len(names) + 1.5), sharey=True, squeeze=False)
    for axis, compared in zip(axes[0], shown, strict=True):
        for row, name in enumerate(names):
            between = difference(found, name, "ppo", compared)
            if between is None:
                continue
            colour = COLOURS.get(name, "#777777")
            shared = sorted(set(found[name]) & set(found["ppo"]))
            dots = [found[name][seed][compared] - found["ppo"][seed][compared] for seed in shared]
            axis.plot(dots, [row] * len(dots), ".", color=colour, alpha=0.4, markersize=5)
            axis.errorbar(between.mean, row, xerr=between.half, fmt="o", color=colour, capsize=3, markersize=5)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"gold, {titles[compared]}", fontsize=10)
        axis.set_xlabel("difference to tuned PPO", fontsize=9)
        axis.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes[0, 0].set_yticks(range(len(names)), [record["methods"][name]["title"] for name in names], fontsize=9)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    save(figure, path)


def over_optimisation(record: Mapping[str, Any], path: Path) -> None:
    """Gold and proxy against the KL to the reference, by domain, a point every few iterations, mean over seeds."""
    from matplotlib import pyplot as plt

    domains = _DOMAINS[record["benchmark"]]
    figure, axes = plt.subplots(2, len(domains), figsize=(11, 5.6), sharex="col")
    for name in _CURVES:
        curves = [run["curve"] for run in outcomes(record, name) if run.get("curve")]
        if not curves:
            continue
        for column, domain in enumerate(domains):
            points = list(zip(*curves, strict=True))
            kl = [_mean([point[f"eval/kl/domain/{domain}"] for point in seeds]) for seeds in points]
            for row, key in enumerate(("gold/domain", "eval/reward/domain")):
                value = [_mean([point[f"{key}/{domain}"] for point in seeds]) for seeds in points]
                title = record["methods"][name]["title"]
                axes[row, column].plot(kl, value, "o-", color=COLOURS[name], markersize=3, linewidth=1.2, label=title)
    for column, domain in enumerate(domains.values()):
        axes[0, column].set_title(domain, fontsize=10)
        axes[1, column].set_xlabel("KL to the reference, nats a response", fontsize=9)
        for row in (0, 1):
            axes[row, column].set_xlim(left=0)
            axes[row, column].grid(linewidth=0.4, alpha=0.5)
    axes[0, 0].set_ylabel("gold reward", fontsize=9)
    axes[1, 0].set_ylabel("proxy reward", fontsize=9)
    axes[0, 0].legend(fontsize=8, frameon=False)
    save(figure, path)


def groups(record: Mapping[str, Any], path: Path) -> None:
    """The smaller group's mass and the AUC against the known domains over the iterations, a line a seed."""
    from matplotlib import pyplot as plt

    names = [name for name in _GROUPED if outcomes(record, name)]
    figure, axes = plt.subplots(2, max(len(names), 1), figsize=(11, 4.8), sharex=True, sharey="row", squeeze=False)
    for column, name in enumerate(names):
        for run in outcomes(record, name):
            trace = run.get("trace") or []
            steps = [row["step"] for row in trace]
            mass = [min(row["group/0/mass"], row["group/1/mass"]) for row in trace]
            axes[0, column].plot(steps, mass, color=COLOURS[name], linewidth=1, alpha=0.7)
            auc = [row["group/domain_auc"] for row in trace]
            axes[1, column].plot(steps, auc, color=COLOURS[name], linewidth=1, alpha=0.7)
        axes[0, column].set_title(record["methods"][name]["title"], fontsize=10)
        axes[0, column].axhline(0.15, color="black", linewidth=0.8, linestyle=":")
        axes[1, column].axhline(0.9, color="black", linewidth=0.8, linestyle=":")
        axes[1, column].set_xlabel("iteration", fontsize=9)
    axes[0, 0].set_ylabel("smaller mass", fontsize=9)
    axes[1, 0].set_ylabel("AUC against the domains", fontsize=9)
    axes[0, 0].set_ylim(0, 0.52)
    axes[1, 0].set_ylim(0.48, 1)
    save(figure, path)


def _mean(values: list[float]) -> float:
    return interval(values).mean if len(values) > 1 else values[0]


def save(figure: Any, path: Path, above: float = 0.0) -> None:
    """above: share of the figure's height that stays free at its top."""
    from matplotlib import pyplot as plt

    figure.tight_layout(rect=(0, 0, 1, 1 - above))
    figure.savefig(path, dpi=80)
    plt.close(figure)
