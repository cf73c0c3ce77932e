"""What came of runs, in words and first: did the policy get better, where not, and what to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gipo_mc.report import summary
from gipo_mc.report.groups import parts
from gipo_mc.report.judgement import FEW, apart, best_step, change, turn, wavering
from gipo_mc.report.runs import RunData, window_of
from gipo_mc.report.texts import readable
from gipo_mc.run.console import number

Tone = Literal["good", "warn", "bad", "info"]
#: What a policy is judged by, the truest first: name, what it is called, prefix of its domains.
_YARDSTICKS = (
    ("gold/mean", "gold reward", "gold/domain/"),
    ("eval/reward/mean", "held-out reward", "eval/reward/domain/"),
    ("reward/mean", "reward", "reward/domain/"),
)
#: Beginnings of the run's own warnings that are signs of reward hacking.
_HACKING = ("One answer to everything", "The responses", "Nearly every response refuses")


@dataclass(frozen=True)
class Verdict:
    """headline: one sentence. points: (tone, sentence) of what else matters, few."""

    tone: Tone
    headline: str
    points: list[tuple[Tone, str]] = field(default_factory=list)


def verdict(runs: Sequence[RunData]) -> Verdict:
    """Of runs of one kind: of one run, what came of it; of several, which is best where, and each in a sentence."""
    singles = [_single(run) for run in runs]
    if len(runs) == 1:
        return singles[0]
    compared = _compared(runs) if runs[0].kind == "rl" else Verdict("info", _best_loss(runs))
    each = [(one.tone, f"{readable(run.name)}: {one.headline}") for run, one in zip(runs, singles, strict=True)]
    return Verdict(compared.tone, compared.headline, [*compared.points, *each])


def _single(run: RunData) -> Verdict:
    state = run.status.get("state")
    if state == "failed":
        message = readable(run.status.get("message") or "")
        return Verdict("bad", f"It failed after step {run.steps[-1]}. {message}".strip())
    return _policy(run) if run.kind == "rl" else _supervised(run)


def _policy(run: RunData) -> Verdict:
    name, called, prefix = yardstick([run])
    waits = run.option("algorithm.critic_warmup")
    if isinstance(waits, int) and waits >= run.steps[-1] > 0:
        text = f"The policy was not trained: algorithm.critic_warmup={waits} had it wait for the critic to the end."
        return Verdict("warn", text)
    went = change(run, name)
    if went is None:
        return Verdict("info", f"Too short to judge: {run.iterations} iteration{'s' * (run.iterations != 1)}.")
    points = _domains(run, prefix) + _groups(run)
    if best := best_step(run, name):
        at, high = best
        points.append(
            ("warn", f"The {called} was best, {number(high)}, at iteration {at}: a checkpoint near it is better.")
        )
    ends = f"from {number(went.first)} to {number(went.last)}"
    signs = [text for text in summary.own_warnings(run) if text.startswith(_HACKING)]
    if summary.hacked(run):
        return Verdict("bad", f"The reward rose and the policy got worse: its {called} fell {ends}.", points)
    if went.way < 0:
        return Verdict("bad", f"The policy got worse: its {called} fell {ends}.", points)
    if went.way == 0:
        by_way = turn(run, name)
        if by_way:
            ends += f" by way of {number(by_way[1])} at iteration {by_way[0]}"
        if len(run.values(name)) < FEW:
            text = f"the {called} went {ends}, and {len(run.values(name))} values are too few to tell more."
            return Verdict("warn", f"Look at the curve: {text}", points)
        return Verdict(
            "warn", f"The policy did not clearly change: its {called} went {ends}, within its wavering.", points
        )
    if signs and name != "gold/mean":
        text = f"The {called} rose {ends}, but the responses show signs of reward hacking."
        return Verdict("warn", text, [("warn", signs[0]), *points])
    fell = [part for tone, part in points if tone == "bad"]
    if fell:
        return Verdict("warn", f"The policy got better on average, not everywhere: its {called} rose {ends}.", points)
    return Verdict("good", f"The policy got better: its {called} rose {ends}.", points)


def yardstick(runs: Sequence[RunData]) -> tuple[str, str, str]:
    """(metric, what it is called, prefix of its domains) of the truest measure that all runs have."""
    return next((found for found in _YARDSTICKS if all(len(run.values(found[0])) for run in runs)), _YARDSTICKS[-1])


def _domains(run: RunData, prefix: str) -> list[tuple[Tone, str]]:
    """How the domains went: those that fell, which of those that are trained on is the lowest, and the others."""
    went = {key: change(run, prefix + key) for key in run.keys(prefix)}
    known = {key: found for key, found in went.items() if found is not None}
    if len(known) < 2:
        return []
    points: list[tuple[Tone, str]] = [
        ("bad", f"Domain {readable(key)} fell from {number(found.first)} to {number(found.last)}.")
        for key, found in known.items()
        if found.way < 0
    ]
    trained, others = ([key for key in keys if key in known] for keys in run.domains(prefix))
    if len(trained) > 1:
        worst, best = (extreme(trained, key=lambda key: known[key].last) for extreme in (min, max))
        before = [known[key].first for key in trained]
        gap, gap_before = known[best].last - known[worst].last, max(before) - min(before)
        text = f"The worst domain is {readable(worst)} at {number(known[worst].last)}, the best {readable(best)} at "
        text += f"{number(known[best].last)}; the gap between them was {number(gap_before)} and is {number(gap)}."
        points.append(("info", text))
    for key in others:
        if known[key].way >= 0:  # one that fell has its sentence
            ends = f"from {number(known[key].first)} to {number(known[key].last)}"
            points.append(("info", f"Domain {readable(key)}, which is not trained on, went {ends}."))
    return points


def _groups(run: RunData) -> list[tuple[Tone, str]]:
    """What the inferred groups turned out to be."""
    found = [part for part in parts(run) if part.inferred]
    if len(found) < 2:
        return []
    text = "Of the groups that the classifier finds, "
    text += " and ".join(
        f"{part.label} has the {part.rank} at the end, {number(part.reward)}"
        + (f" ({part.called})" if part.called != part.label else "")
        for part in (found[0], found[-1])
    )
    auc = run.last("group/domain_auc")
    known = f"; they match the known domains with AUC {number(auc)}" if auc is not None else ""
    points: list[tuple[Tone, str]] = [("info", f"{text}{known}.")]
    empty = [part for part in found if part.mass < 0.02]
    if empty:
        points.append(("warn", f"{empty[0].label.capitalize()} is nearly empty: the groups have collapsed."))
    return points


def _compared(runs: Sequence[RunData]) -> Verdict:
    """Which run is best in its worst domain, on average and out of domain, and how far each went for it."""
    name, called, prefix = yardstick(runs)
    average = sorted(runs, key=lambda run: -(run.last(name) or 0.0))
    shared, others = _shared(runs, prefix)
    over = "over all held-out prompts" if prefix != "reward/domain/" else "on average"
    mean = f"{over} {readable(average[0].name)}, with a {called} of {number(average[0].last(name) or 0.0)} against "
    mean += number(average[1].last(name) or 0.0)
    if not apart(average[0], average[1], name):
        ends = " and ".join(f"{readable(run.name)}, {number(run.last(name) or 0.0)}" for run in average[:2])
        mean = f"{over} the best two hardly differ ({ends})"
    points: list[tuple[Tone, str]] = []
    for key in others:
        ends = ", ".join(f"{readable(run.name)} {number(run.last(prefix + key) or 0.0)}" for run in runs)
        points.append(("info", f"Domain {readable(key)}, which is not trained on, ends at: {ends}."))
    points += _distances(runs)
    points.append(("info", "One run each: with other seeds they may rank otherwise."))
    if len(shared) < 2:
        return Verdict("info", f"Best: {mean}.", points)

    def worst(run: RunData) -> tuple[float, str]:
        return min((float(run.last(prefix + key) or 0.0), key) for key in shared)

    ranked = sorted(runs, key=lambda run: -worst(run)[0])
    (high, where), (low, elsewhere) = worst(ranked[0]), worst(ranked[1])
    if where == elsewhere and not apart(ranked[0], ranked[1], prefix + where):
        text = f"On the worst domain, {readable(where)}, the best two hardly differ "
        text += f"({readable(ranked[0].name)}, {number(high)}, and {readable(ranked[1].name)}, {number(low)})"
    else:
        text = (
            f"{readable(ranked[0].name)} has the best worst domain: {readable(where)} ends at a {called} of "
            f"{number(high)}; that of {readable(ranked[1].name)}, {readable(elsewhere)}, at {number(low)}"
        )
    return Verdict("info", f"{text}; {mean}.", points)


def _shared(runs: Sequence[RunData], prefix: str) -> tuple[list[str], list[str]]:
    """(domains that every run is trained on, the others) of those that all have."""
    split = [run.domains(prefix) for run in runs]
    known = [key for key in runs[0].keys(prefix) if all(run.last(prefix + key) is not None for run in runs)]
    trained = [key for key in known if all(key in own for own, _ in split)]
    return trained, [key for key in known if key not in trained]


def _distances(runs: Sequence[RunData]) -> list[tuple[Tone, str]]:
    """How far the policies went from the reference, where they went unequally far."""
    found = [(value, run) for run in runs if (value := run.last("kl/mean")) is not None]
    if len(found) < 2 or max(found, key=lambda item: item[0])[0] < 1.1 * min(found, key=lambda item: item[0])[0]:
        return []
    ends = ", ".join(f"{readable(run.name)} {number(value)}" for value, run in found)
    text = f"KL to the reference, in nats a response: {ends}. What was gained at a larger KL need not be gained at an "
    return [("info", f"{text}equal one.")]


def _supervised(run: RunData) -> Verdict:
    name = "eval/loss" if len(run.values("eval/loss")) else "loss"
    called = "held-out loss" if name == "eval/loss" else "loss"
    values = run.values(name)
    if len(values) < 2:
        return Verdict("info", f"Too short to judge: {run.iterations} step{'s' * (run.iterations != 1)}.")
    first, last, lowest = float(run.first(name) or 0), float(run.last(name) or 0), int(values.argmin())
    ends = f"from {number(first)} to {number(last)}"
    accuracy = next((key for key in ("eval/accuracy", "accuracy") if len(run.values(key)) > 1), "")
    points: list[tuple[Tone, str]] = []
    if accuracy:
        held = "held-out " if accuracy.startswith("eval/") else ""
        went = f"{number(run.first(accuracy) or 0.0)} to {number(run.last(accuracy) or 0.0)}"
        points.append(("info", f"The {held}accuracy went from {went}; 0.5 is chance."))
    points += _weak_domains(run)
    rise, fall = last - values[lowest], first - values[lowest]
    clear = min(rise, fall) > 3 * wavering(values) * math.sqrt(window_of(len(values)))
    turned = name == "eval/loss" and 0 < lowest < len(values) - 1 and rise > 0.1 * fall and clear
    if turned:
        step = int(run.steps[run.series[name] == values[lowest]][0])
        text = f"The model learned until step {step}, where its {called} was lowest ({number(float(values[lowest]))})"
        return Verdict("warn", f"{text}; then it overfitted, to {number(last)}.", points)
    if last >= first:
        return Verdict("warn", f"The model did not learn: its {called} went {ends}.", points)
    return Verdict("good", f"The model learned: its {called} fell {ends}.", points)


def _weak_domains(run: RunData) -> list[tuple[Tone, str]]:
    """Domains whose pairs a reward model cannot tell apart."""
    prefix = "eval/accuracy/domain/"
    found = {key: run.last(prefix + key) or 0.0 for key in run.keys(prefix)}
    weak = [f"{readable(key)} ({number(value)})" for key, value in found.items() if value < 0.55]
    return [("warn", f"Hardly better than chance in {', '.join(weak)}.")] if weak else []


def _best_loss(runs: Sequence[RunData]) -> str:
    name = "eval/loss" if all(len(run.values("eval/loss")) for run in runs) else "loss"
    found = [(value, run) for run in runs if (value := run.last(name)) is not None]
    if not found:
        return "No loss was logged."
    lowest, best = min(found, key=lambda item: item[0])
    called = "held-out loss" if name == "eval/loss" else "loss"
    return f"The lowest {called} has {readable(best.name)}: {number(lowest)}."
