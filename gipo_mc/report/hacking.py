"""Reward hacking in a report: its charts, the long tail of the rewards, and the responses that the run kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gipo_mc.report.catalogue import REWARD_UNIT, Chapter, Chart
from gipo_mc.report.runs import RunData
from gipo_mc.report.texts import cell, prompt_shown, readable, response_shown

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
