"""What a report says in words and numbers: cards, notices, chosen samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gipo_mc.presets import PRESETS
from gipo_mc.report.drawing.colours import group_colour
from gipo_mc.report.hacking import is_example
from gipo_mc.report.panels import phase_seconds
from gipo_mc.report.runs import RunData
from gipo_mc.report.texts import cell, prompt_shown, readable, response_shown
from gipo_mc.run.console import duration, number
from gipo_mc.run.folder import fell_silent

TITLES = {
    "rl": "Reinforcement learning",
    "train_sft": "Supervised fine-tuning",
    "train_reward": "Reward model",
    "train_dpo": "Direct preference optimization",
    "supervised": "Supervised training",
}


@dataclass(frozen=True)
class Card:
    """A number with its name. detail: where it came from. tone: "good", "bad" or ""."""

    label: str
    value: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class ShownSample:
    """A sampled response as the table shows it. groups: (label, share in %, colour) of its memberships."""

    why: str
    step: int
    domain: str
    prompt: str
    response: str
    reward: str
    kl: str
    length: str
    groups: list[tuple[str, float, str]]


def title(run: RunData) -> str:
    """What the run is, for people: GI-PPO, Reward model, ..."""
    if run.kind == "rl":
        preset = PRESETS.get(run.algorithm)
        return preset.title if preset else TITLES["rl"]
    return TITLES.get(run.kind, run.kind)


def layout(run: RunData) -> str:
    """Layout in words, from what the run said of itself, else from its configuration."""
    said = next((value for key, value in run.about if key.lower() == "layout"), "")
    tensor, pipeline = run.option("parallel.tensor"), run.option("parallel.pipeline")
    return said or (f"TP{tensor} × PP{pipeline}" if tensor and pipeline else "")


def headline(run: RunData) -> str:
    """One sentence: what came of the run."""
    count = run.iterations
    if run.kind == "rl":
        parts = [f"Over {_times(count, 'iteration')} the mean reward {_went(run, 'reward/mean')}"]
        if run.last("gold/mean") is not None:
            parts.append(f"the gold reward, which training never sees, {_went(run, 'gold/mean')}")
        worst = worst_domain(run)
        if worst:
            parts.append(f"the worst domain is {readable(worst[0])} at {number(worst[1])}")
        return "; ".join(parts) + "."
    name = "eval/loss" if run.last("eval/loss") is not None else "loss"
    parts = [f"Over {_times(count, 'step')} the {'held-out ' * (name != 'loss')}loss {_went(run, name)}"]
    accuracy = "eval/accuracy" if run.last("eval/accuracy") is not None else "accuracy"
    if run.last(accuracy) is not None:
        parts.append(f"the {'held-out ' * (accuracy != 'accuracy')}accuracy {_went(run, accuracy)}")
    return "; ".join(parts) + "."


def _times(count: int, unit: str) -> str:
    return f"{count} {unit}{'s' * (count != 1)}"


def _went(run: RunData, name: str) -> str:
    first, last = run.first(name), run.last(name)
    if first is None or last is None:
        return "was not logged"
    if run.iterations == 1 or number(first) == number(last):
        return f"was {number(last)}"
    return f"{'rose' if last > first else 'fell'} from {number(first)} to {number(last)}"


def worst_domain(run: RunData) -> tuple[str, float] | None:
    """Of the domains that are trained on the one with the lowest final gold reward where gold is known, else reward;
    None with fewer than two."""
    prefix = "gold/domain/" if run.keys("gold/domain/") else "reward/domain/"
    found = {key: value for key in run.domains(prefix)[0] if (value := run.last(prefix + key)) is not None}
    if len(found) < 2:
        return None
    key = min(found, key=lambda name: found[name])
    return key, found[key]


def cards(run: RunData) -> list[Card]:
    """The numbers to look at first."""
    found: list[Card] = []

    def add(label: str, name: str, unit: str = "", good: int = 0) -> None:
        first, last = run.first(name), run.last(name)
        if first is None or last is None:
            return
        tone = "" if not good or first == last else ("good" if (last - first) * good > 0 else "bad")
        detail = f"at the end; {number(first)} at the start" if len(run.values(name)) > 1 else ""
        found.append(Card(label, f"{number(last)}{unit}", detail, tone))

    add("Reward", "reward/mean", good=1)
    add("Gold reward", "gold/mean", good=1)
    worst = worst_domain(run)
    if worst:
        kind = "gold reward" if run.keys("gold/domain/") else "reward"
        found.append(Card("Worst domain", f"{readable(worst[0])} {number(worst[1])}", f"{kind} at the end"))
    add("KL to the reference", "kl/mean", " nats")
    add("Loss", "loss", good=-1)
    add("Held-out loss", "eval/loss", good=-1)
    add("Accuracy", "accuracy", good=1)
    add("Held-out accuracy", "eval/accuracy", good=1)
    masses = [f"{run.last(f'group/{g}/mass') or 0.0:.2f}" for g in run.keys("group/", "/mass")]
    if masses:
        found.append(Card("Mass of the groups", " / ".join(masses), "at the end"))
    add("Response length", "response/length", " tokens")
    seconds = run.values("time/total")
    if len(seconds):
        rate = run.last("throughput/tokens_per_second")
        speed = f", {number(rate)} tokens/s" if rate is not None else ""
        found.append(Card("Time", duration(float(seconds.sum())), f"{number(float(np.median(seconds)))} s each{speed}"))
    return found


def notices(run: RunData) -> list[tuple[str, str]]:
    """(tone, sentence) of what a reader should know: "bad" what went wrong, "warn" what is suspicious, "info"."""
    found: list[tuple[str, str]] = []
    state, message = run.status.get("state"), readable(run.status.get("message") or "")
    if state == "failed":
        found.append(("bad", f"The run failed with exit code {run.status.get('exit_code')}. {message}".strip()))
    elif state == "requeue":
        found.append(("info", f"The run was saved and waits to be started again. {message}".strip()))
    elif silent := fell_silent(run.status):
        found.append(("bad", readable(silent)))
    elif state == "running":
        found.append(("info", f"The run had not ended when this was written (last sign: {run.status.get('updated')})."))
    if run.last("group/oracle"):
        found.append(("info", "An oracle: the method was told the known domains. It bounds what inference can do."))
    for name, steps in run.nonfinite.items():
        found.append(("bad", f"{readable(name)} was NaN or infinite at {_steps(steps)}."))
    found += [("warn", sentence) for sentence in _suspicions(run)]
    found += [("warn", text) for text in own_warnings(run)]
    return found + [("info", readable(note)) for note in run.notes]


def own_warnings(run: RunData) -> list[str]:
    """The run's own warnings; those that differ in their numbers or examples only are one, in its latest wording."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for row in run.warnings:
        alike.setdefault(re.sub(r'For example: ".*"|\d+', "#", str(row.get("text", ""))), []).append(row)
    return [f"{readable(rows[-1].get('text', ''))} ({_steps([r['step'] for r in rows])})" for rows in alike.values()]


def _steps(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps[:5]))
    more = f" and {len(steps) - 5} more" if len(steps) > 5 else ""
    return f"{'step' if len(steps) == 1 else 'steps'} {shown}{more}"


def _suspicions(run: RunData) -> list[str]:
    found = []
    if hacked(run):
        found.append("The reward rose while the gold reward fell: the policy exploits errors of the reward (hacking).")
    if (truncated := run.last("response/truncated")) is not None and truncated > 0.5:
        found.append(_cut(truncated, run.first("response/truncated") or 0.0))
    if (clipped := run.last("policy/clip_fraction")) is not None and clipped > 0.3:
        found.append(f"At the end {clipped:.0%} of the tokens were clipped: the steps are too large, lower policy.lr.")
    if (explained := run.last("critic/explained_variance")) is not None and explained < 0 and run.iterations > 5:
        found.append("The critic explains less of the returns than a constant would: raise critic.lr or critic_warmup.")
    return found


def _cut(last: float, first: float) -> str:
    """On responses that do not end. first, last: the share of them that was cut, at both ends of the run."""
    text = f"At the end {last:.0%} of the responses were cut at rollout.max_new_tokens"
    if first > 0.5:
        return f"{text}, and {first:.0%} at the start: raise it, or train the policy to end its answers."
    return (
        f"{text}, at the start {first:.0%}: the policy has learned not to end them, because longer ones earn more or "
        "an end earns nothing. A higher limit would hardly change that. Where answers have to end, let a missing end "
        "cost something: reward.missing_eos_penalty."
    )


def hacked(run: RunData) -> bool:
    """Whether gold fell, by more than twice its wavering from one value to the next, while the reward rose."""
    gold, reward = run.values("gold/mean"), run.values("reward/mean")
    if len(gold) < 3 or len(reward) < 2:
        return False
    fall = (run.first("gold/mean") or 0.0) - (run.last("gold/mean") or 0.0)
    rise = (run.last("reward/mean") or 0.0) - (run.first("reward/mean") or 0.0)
    return rise > 0 and fall > 2 * float(np.diff(gold).std())


def phase_rows(runs: Sequence[RunData]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(phase, [(seconds, share)] for each run), for the table under the bars."""
    medians = [phase_seconds(run) for run in runs]
    totals = [sum(median.values()) or 1.0 for median in medians]
    phases = dict.fromkeys(phase for median in medians for phase in median)
    return [
        (
            phase,
            [
                (f"{number(m[phase])} s", f"{m[phase] / t:.0%}") if phase in m else ("–", "")
                for m, t in zip(medians, totals)
            ],
        )
        for phase in phases
    ]


def chosen_samples(run: RunData) -> list[ShownSample]:
    """Best and worst responses of the first and the last sampled iteration, in up to four domains."""
    samples = [row for row in run.samples if not is_example(row)]
    if not samples:
        return []
    steps = sorted({row["step"] for row in samples})
    shown = []
    for step in dict.fromkeys((steps[0], steps[-1])):
        rows = [row for row in samples if row["step"] == step]
        domains = list(dict.fromkeys(str(row.get("domain") or "") for row in rows))[:4]
        for domain in domains:
            ranked = sorted((r for r in rows if str(r.get("domain") or "") == domain), key=_reward, reverse=True)
            best = ranked[: 2 if len(domains) <= 2 else 1]
            worst = ranked[len(best) :][-len(best) :]
            shown += [_shown("best", row) for row in best] + [_shown("worst", row) for row in worst]
    return shown


def newest_samples(run: RunData, count: int) -> list[ShownSample]:
    """The best and the worst responses of the newest sampled iteration, `count` at most."""
    rows = [row for row in run.samples if not is_example(row)]
    ranked = sorted((row for row in rows if row["step"] == rows[-1]["step"]), key=_reward, reverse=True)
    best, worst = ranked[: count - count // 2], ranked[count - count // 2 :][-(count // 2) :]
    return [_shown("best", row) for row in best] + [_shown("worst", row) for row in worst]


def _reward(row: dict[str, Any]) -> float:
    reward = row.get("reward")
    return float(reward) if isinstance(reward, (int, float)) else float("-inf")


def _shown(why: str, row: dict[str, Any]) -> ShownSample:
    probs = row.get("group_probs")
    probs = [p for p in probs if isinstance(p, (int, float))] if isinstance(probs, list) else []
    return ShownSample(
        why=why,
        step=row["step"],
        domain=readable(row.get("domain") or ""),
        prompt=prompt_shown(row.get("prompt", "")),
        response=response_shown(row.get("response", "")),
        reward=cell(row.get("reward")),
        kl=cell(row.get("kl")),
        length=cell(row.get("length")),
        groups=_memberships(probs) if len(probs) > 1 else [],
    )


def _memberships(probs: Sequence[float]) -> list[tuple[str, float, str]]:
    return [(f"group {g}: {p:.2f}", 100 * p, group_colour(str(g))) for g, p in enumerate(probs)]
