"""Reward hacking in words: conditions on the metrics that have to hold for some iterations in a row (as those of
`algorithms.group_diagnostics`), and the responses that show them, for samples.jsonl and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.group_diagnostics import REPEAT
from gipo_mc.algorithms.state import Health
from gipo_mc.rl.experience import Experience
from gipo_mc.rl.hacking.metrics import Looks, domain_rows
from gipo_mc.rl.metrics import sample_row
from gipo_mc.rl.rewards import responses
from gipo_mc.run.jsonl import printable
from gipo_mc.types import Prompt

#: Characters of a response that a warning quotes.
_QUOTED = 120
#: Prompts beside its own that an example of one response to many lists.
_PROMPTS = 3


@dataclass(frozen=True)
class Alarm:
    """metric: what is watched, whole and by domain; said where the largest has been at least `limit` for `patience`
    iterations in a row. words: (share, where, iterations) -> the sentence. Examples are kept from half the limit on.
    """

    metric: str
    limit: float
    patience: int
    words: Callable[[float, str, int], str]


ALARMS: dict[str, Alarm] = {
    "alike": Alarm(
        "response/commonest",
        0.5,
        5,
        lambda share, where, count: (
            f"One answer to everything: for {count} iterations a response has been nearly the same as {share:.0%} of "
            f"the responses to other prompts{where}. The reward pays for it whatever is asked: look at what the reward "
            "model gives it, raise algorithm.kl_coef, or stop earlier."
        ),
    ),
    "repetitive": Alarm(
        "response/repetition",
        0.3,
        5,
        lambda share, where, count: (
            f"The responses{where} repeat themselves: for {count} iterations {share:.0%} of their pieces of four "
            "tokens have stood in the same response before. Raise algorithm.kl_coef, lower rollout.max_new_tokens, or "
            "train the reward model on such responses."
        ),
    ),
    "refuses": Alarm(
        "response/refusals",
        0.9,
        5,
        lambda share, where, count: (
            f"Nearly every response refuses: for {count} iterations {share:.0%} of the responses{where} have begun "
            "with a phrase of refusal (rollout.refusals). Where these prompts deserve an answer, the reward "
            "pays for none: look at what the reward model gives to refusals, or raise algorithm.kl_coef."
        ),
    ),
}


def worst(metrics: Mapping[str, float], metric: str) -> tuple[float, str]:
    """(largest value of a metric, whole and by domain; the domain, "" where that is the whole batch)."""
    prefix = f"{metric}/domain/"
    found = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    best = max(found, key=lambda name: found[name], default="")
    whole = metrics.get(metric, 0.0)
    return (found[best], best) if best and found[best] > whole else (whole, "")


def count_hacking(health: Health, metrics: Mapping[str, float]) -> Health:
    """The health with the iterations in a row in which each alarm held, this one's `metrics` included."""
    return health.counted(**{name: worst(metrics, a.metric)[0] >= a.limit for name, a in ALARMS.items()})


def hacking_warnings(
    health: Health, metrics: Mapping[str, float], examples: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """What a person should hear after this iteration, each with the response that shows it; empty when all is well.

    health: of `count_hacking` with the same metrics. examples: of `hacking_examples`."""
    said = []
    for name, alarm in ALARMS.items():
        count = health.counts.get(name, 0)
        if count < alarm.patience or (count - alarm.patience) % REPEAT:
            continue
        share, domain = worst(metrics, alarm.metric)
        text = alarm.words(share, f" of domain {domain}" if domain else "", count)
        shown = next((str(row["response"]) for row in examples if row["hacking"] == name), "")
        if shown:
            quoted = printable(shown[:_QUOTED]) + "…" * (len(shown) > _QUOTED)
            text += f' For example: "{quoted}" More are in samples.jsonl, under hacking, and in the report.'
        said.append(text)
    return said


def hacking_examples(
    prompts: Sequence[Prompt],
    experience: Experience,
    tokenizer: PreTrainedTokenizerBase,
    metrics: Mapping[str, float],
    seen: Looks,
) -> list[dict[str, object]]:
    """Rows for samples.jsonl: for each alarm whose metric is at half its limit the response that shows it best.
    seen: what `metrics` were computed of.

    Beside the columns of every sample: "hacking", the alarm's name; "share", the metric where it is largest; "count",
    the responses like this one in that part of the batch; "prompts", some prompts of the others.
    """
    due = {name: worst(metrics, alarm.metric) for name, alarm in ALARMS.items()}
    due = {name: found for name, found in due.items() if found[0] >= ALARMS[name].limit / 2}
    if not due:
        return []
    rollout = experience.rollout
    rows = []
    for name, (share, domain) in due.items():
        part = domain_rows(rollout.domain_B)[domain] if domain else list(range(len(experience)))
        chosen, like = _example(name, seen, part)
        others = [prompts[row].text for row in like if row != chosen]
        [text] = responses(rollout.sequences.rows(torch.tensor([chosen], device=experience.kl_B.device)), tokenizer)
        rows.append(
            sample_row(prompts[chosen], experience, chosen, text)
            | {"hacking": name, "share": share, "count": len(like), "prompts": others[:_PROMPTS]}
        )
    return rows


def _example(name: str, seen: Looks, part: list[int]) -> tuple[int, list[int]]:
    """(the row that shows the alarm best, the rows of `part` that are like it, itself included)."""
    if name == "alike":
        chosen = part[int(seen.alike.shares(part).argmax())]
        near_B = seen.alike.near_BB[chosen]
        return chosen, [row for row in part if row == chosen or bool(near_B[row])]
    value_B = seen.repetition_B if name == "repetitive" else seen.refuses_B
    chosen = part[int(value_B[part].argmax())]
    least = 0.5 * float(value_B[chosen])
    return chosen, [row for row in part if float(value_B[row]) > least]
