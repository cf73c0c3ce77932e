"""Runs of one kind side by side: their final values, and the differences to any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gipo_mc.report.runs import RunData
from gipo_mc.report.summary import title
from gipo_mc.report.texts import readable
from gipo_mc.run.console import number

#: Up to so many runs are shown against one another.
_AGAINST = 6
#: Iterations whose median time is worth comparing.
_TIMED = 20


@dataclass(frozen=True)
class Table:
    """columns: headings, the first of the rows' names. rows: cells as text. best: (row, column) worth a mark. against:
    the run that the cells are differences to, "" where they are values."""

    columns: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]
    against: str = ""


def comparisons(runs: Sequence[RunData]) -> list[Table]:
    """The final values of runs of one kind side by side, then their differences to each run; for more than `_AGAINST`
    runs the values alone."""
    tables = [comparison(runs)]
    if len(runs) <= _AGAINST:
        tables += [_differences(runs, base) for base in runs]
    return tables


def comparison(runs: Sequence[RunData]) -> Table:
    """Final values of runs of one kind beside one another."""
    columns = _columns(runs)
    rows = [[readable(run.name), title(run), str(run.iterations)] for run in runs]
    best: set[tuple[int, int]] = set()
    for _, name, good in columns:
        values = [run.last(name) for run in runs]
        there = [value for value in values if value is not None]
        for i, value in enumerate(values):
            rows[i].append("–" if value is None else number(value))
            if good and len(there) > 1 and value == max(there, key=lambda v: v * good):
                best.add((i, len(rows[i]) - 1))
    rl = runs[0].kind == "rl"
    headings = ["Run", "What", "Iterations" if rl else "Steps", *(column[0] for column in columns)]
    cost = _cost(runs)
    if cost:
        headings.append("Time per iteration (median)" if rl else "Time per step (median)")
        for row, text in zip(rows, cost):
            row.append(text)
    return Table(headings, rows, best)


def _differences(runs: Sequence[RunData], base: RunData) -> Table:
    """Final values less those of `base`, of every run."""
    columns = _columns(runs)
    headings = ["Run", "What", "Iterations" if runs[0].kind == "rl" else "Steps", *(column[0] for column in columns)]
    rows, best = [], set()
    for i, run in enumerate(runs):
        row = [readable(run.name), title(run), str(run.iterations)]
        for _, name, good in columns:
            here, there = run.last(name), base.last(name)
            row.append("–" if here is None or there is None else f"{here - there:+.3g}".replace("-", "−"))
            if good and here is not None and there is not None and (here - there) * good > 0:
                best.add((i, len(row) - 1))
        rows.append(row)
    return Table(headings, rows, best, readable(base.name))


def _columns(runs: Sequence[RunData]) -> list[tuple[str, str, int]]:
    """(heading, metric, 1 where more is better, -1 less, 0 neither) of what some run has."""
    rl = runs[0].kind == "rl"
    columns: list[tuple[str, str, int]] = [("Reward", "reward/mean", 1)] if rl else []
    if rl:
        columns += [("Gold", "gold/mean", 1)]
        prefix, label = (
            ("gold/domain/", "Gold") if any(r.keys("gold/domain/") for r in runs) else ("reward/domain/", "Reward")
        )
        domains = sorted({key for run in runs for key in run.keys(prefix)})
        columns += [(f"{label}: {readable(key)}", prefix + key, 1) for key in domains]
        columns += [
            ("KL", "kl/mean", 0),
            ("Length", "response/length", 0),
            ("Tokens/s", "throughput/tokens_per_second", 0),
        ]
    else:
        columns += [("Loss", "loss", -1), ("Held-out loss", "eval/loss", -1), ("Accuracy", "accuracy", 1)]
        columns += [("Held-out accuracy", "eval/accuracy", 1), ("Tokens/s", "throughput/tokens_per_second", 0)]
    return [column for column in columns if any(run.last(column[1]) is not None for run in runs)]


def _cost(runs: Sequence[RunData]) -> list[str]:
    """Median seconds of an iteration; in percent over PPO's where one of the runs is PPO and both were timed alike."""
    medians = [_median_total(run) for run in runs]
    if not any(medians):
        return []
    base = next(((run, m) for run, m in zip(runs, medians) if run.algorithm == "ppo" and m), None)
    texts = []
    for run, seconds in zip(runs, medians):
        over = ""
        if base and seconds and run.algorithm != "ppo" and _timed_alike(run, base[0]):
            over = f" ({(seconds / base[1] - 1) * 100:+.0f} % vs PPO)"
        texts.append(f"{number(seconds)} s{over}" if seconds else "–")
    return texts


def _timed_alike(one: RunData, other: RunData) -> bool:
    """Long enough for a median, and not on one host at the same time, where each slows the other down."""
    long = min(len(one.values("time/total")), len(other.values("time/total"))) >= _TIMED
    (host, start, end), (other_host, other_start, other_end) = (
        tuple(str(run.status.get(key, "")) for key in ("host", "started", "updated")) for run in (one, other)
    )
    return long and (host != other_host or end <= other_start or other_end <= start)


def _median_total(run: RunData) -> float | None:
    values = run.values("time/total")
    return float(np.median(values)) if len(values) else None
