"""Reward hacking in a report: its charts, the long tail of the rewards, and the responses that the run kept of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gipo_mc.report.catalogue import REWARD_UNIT, Chapter, Chart
from gipo_mc.report.runs import RunData
from gipo_mc.report.texts import cell, prompt_shown, readable, response_shown
from gipo_mc.run.console import number

#: Stand beside the distributions.
TAIL = (
    Chart(
        "Long tail of the rewards",
        "Quantiles of an iteration's rewards.",
        REWARD_UNIT,
        ("reward/p99", "reward/p90", "reward/p50", "reward/p10", "reward/p01"),
        ("99 %", "90 %", "median", "10 %", "1 %"),
    ),
    Chart(
        "Skew of the rewards",
        "Below 0 few rewards lie far under the others: the tail that a mean hides.",
        "skewness",
        ("reward/skew",),
        baseline=(0.0, "symmetric"),
    ),
    Chart("Skew of the rewards by domain", "", "skewness", ("reward/skew/domain/*",), baseline=(0.0, "symmetric")),
)
CHAPTER = Chapter(
    "Reward hacking",
    "What a policy does that has found what the reward pays for: one answer to all, repetition, refusals, length.",
    (
        Chart(
            "Alike responses to different prompts",
            "Commonest: the largest share of the other prompts' responses that one response is nearly the same as.",
            "share of responses",
            ("response/near_identical", "response/identical", "response/commonest"),
            ("near-identical", "identical", "commonest"),
        ),
        Chart("Near-identical by domain", "", "share of responses", ("response/near_identical/domain/*",)),
        Chart(
            "Commonest response by domain",
            "Near 1 every prompt of the domain is given the same answer.",
            "share of responses",
            ("response/commonest/domain/*",),
        ),
        Chart("Near-identical by group", "Weighted by membership.", "share of responses", ("group/*/near_identical",)),
        Chart(
            "Repetition and refusals",
            "Repetition: pieces of four tokens that the response has had before. Refusal: a phrase at its beginning.",
            "share",
            ("response/repetition", "response/refusals"),
            ("repetition", "refusals"),
        ),
        Chart("Repetition by domain", "", "share of pieces", ("response/repetition/domain/*",)),
        Chart("Repetition by group", "Weighted by membership.", "share of pieces", ("group/*/repetition",)),
        Chart("Refusals by domain", "", "share of responses", ("response/refusals/domain/*",)),
        Chart("Refusals by group", "Weighted by membership.", "share of responses", ("group/*/refusals",)),
        Chart("Length by domain", "EOS counted.", "tokens", ("response/length/domain/*",)),
        Chart("Length by group", "Weighted by membership.", "tokens", ("group/*/length",)),
        Chart(
            "Reward and length",
            "Correlation in an iteration; near 1 the reward pays for length.",
            "correlation",
            ("reward/length_correlation",),
            baseline=(0.0, "unrelated"),
        ),
    ),
)
_WHAT = {
    "alike": "One answer to many prompts",
    "repetitive": "Repeats itself",
    "refuses": "Refuses",
}
_SHARE = {
    "alike": "of the responses to other prompts are nearly this one",
    "repetitive": "of the pieces of four tokens are repeated, in the mean",
    "refuses": "of the responses refuse",
}


@dataclass(frozen=True)
class ShownHacking:
    """An example as the page shows it. share: a sentence. prompts: some of the `count` that were answered so."""

    what: str
    step: int
    domain: str
    share: str
    response: str
    prompts: list[str]
    count: str
    reward: str


#: Of the newest samples so many are searched for ordinary responses that look better to the reward than they are.
_READ = 400
_SUSPECTS = 3
#: What makes a response of high reward suspect: a length of so many medians, so large a share of repeated pieces.
_LONG, _REPEATED = 1.8, 0.25


@dataclass(frozen=True)
class Suspect:
    """An ordinary sample of high reward that is bad by a sign of its own. why: clauses."""

    step: int
    domain: str
    prompt: str
    response: str
    reward: str
    why: list[str]


def suspects(run: RunData) -> list[Suspect]:
    """Of the newest samples those of high reward that are far longer than the others, cut off, repeat themselves, or
    have a low gold reward where that is known; the most suspect first."""
    rows = [row for row in run.samples if not any(row.get(key) for key in ("hacking", "invalid", "clipped"))]
    rows = [row for row in sorted(rows, key=lambda row: row["step"])[-_READ:] if _is_number(row.get("reward"))]
    if len(rows) < 8:
        return []
    rewards = np.array([row["reward"] for row in rows], dtype=float)
    lengths = np.array([row["length"] if _is_number(row.get("length")) else np.nan for row in rows], dtype=float)
    gold = np.array([row["gold"] if _is_number(row.get("gold")) else np.nan for row in rows], dtype=float)
    usual_length = float(np.nanmedian(lengths)) if np.isfinite(lengths).any() else float("inf")
    usual_gold = float(np.nanmedian(gold)) if np.isfinite(gold).any() else float("-inf")
    cut = sum(bool(row.get("truncated")) for row in rows) / len(rows)
    found = []
    for at in np.flatnonzero(rewards >= np.quantile(rewards, 0.75)):
        row, why = rows[at], []
        repeated = _repeated(str(row.get("response", "")))
        if repeated >= _REPEATED:
            why.append(f"repeats itself: {repeated:.0%} of its pieces of four words stood in it before")
        if lengths[at] >= _LONG * usual_length:
            why.append(f"long: {lengths[at]:.0f} tokens, {lengths[at] / usual_length:.1f} times the median")
        if row.get("truncated") and cut < 0.25:
            why.append("cut off before its end")
        if gold[at] < usual_gold:
            why.append(f"gold reward {number(float(gold[at]))}, below the median of {number(usual_gold)}")
        if why:
            found.append((len(why) + repeated, float(rewards[at]), row, why))
    found.sort(key=lambda item: (-item[0], -item[1]))
    shown: dict[str, Suspect] = {}
    for _, reward, row, why in found:
        response = response_shown(str(row.get("response", "")).strip())
        if response not in shown and len(shown) < _SUSPECTS:
            share = float((rewards < reward).mean())
            shown[response] = Suspect(
                row["step"],
                readable(row.get("domain") or ""),
                prompt_shown(str(row.get("prompt", "")).strip()),
                response,
                f"{number(reward)}, above {share:.0%} of the samples",
                why,
            )
    return list(shown.values())


def _repeated(response: str) -> float:
    """Share of a text's pieces of four words that stood in it before."""
    words = response.split()
    pieces = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_example(row: dict[str, Any]) -> bool:
    """Was this line of samples.jsonl kept because it shows hacking?"""
    return str(row.get("hacking")) in _WHAT


def examples(run: RunData) -> list[ShownHacking]:
    """Of each kind the example of the first and of the last iteration that has one."""
    shown = []
    for kind in _WHAT:
        rows = sorted((row for row in run.samples if row.get("hacking") == kind), key=lambda row: row["step"])
        ends = {row["step"]: row for row in (*rows[:1], *rows[-1:])}
        shown += [_shown(kind, row) for row in ends.values()]
    return shown


def _shown(kind: str, row: dict[str, Any]) -> ShownHacking:
    prompts = row.get("prompts")
    others = [str(prompt) for prompt in prompts] if isinstance(prompts, list) else []
    found, domain = row.get("share"), readable(row.get("domain") or "")
    return ShownHacking(
        what=_WHAT[kind],
        step=row["step"],
        domain=domain,
        share=f"{found:.0%} {_SHARE[kind]}" if isinstance(found, float) else "",
        response=response_shown(row.get("response", "")),
        prompts=[prompt_shown(prompt) for prompt in (str(row.get("prompt", "")), *others)],
        count=cell(row.get("count")),
        reward=cell(row.get("reward")),
    )
