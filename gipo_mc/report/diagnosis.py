"""What a run says of its reward and of its groups: do the signals know the domains, does the reward model know its
pairs, and which prompts are in each group."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from gipo_mc.report.catalogue import REWARD_UNIT, Chapter, Chart
from gipo_mc.report.hacking import is_example
from gipo_mc.report.panels import group_colour
from gipo_mc.report.runs import RunData
from gipo_mc.report.texts import prompt_shown, readable

#: Candidates for algorithm.signal, and what else might tell domains apart; metric "signal/auc/<name>" -> words.
SIGNALS = {
    "reward": "reward",
    "gain": "gain over the reference",
    "disagreement": "disagreement of the reward models",
    "return": "return",
    "advantage": "advantage",
    "value_error": "error of the critic",
    "kl": "KL to the reference",
    "length": "length",
}
CHAPTER = Chapter(
    "What the reward and the groups know",
    "Known labels and held-out pairs show it; training reads neither.",
    (
        Chart(
            "Do the signals know the domains?",
            "How well each number of a response, by itself, tells the domains apart.",
            "AUC",
            tuple(f"signal/auc/{name}" for name in SIGNALS),
            tuple(SIGNALS.values()),
            baseline=(0.5, "chance"),
        ),
        Chart(
            "Held-out pairs, right by domain",
            "At chance, what the reward model pays in a domain is noise.",
            "share of pairs",
            ("pairs/accuracy/domain/*",),
            baseline=(0.5, "chance"),
        ),
        Chart(
            "Held-out pairs, right by group", "Weighted by membership of the chosen response.", "share of pairs",
            ("pairs/accuracy/group/*",), baseline=(0.5, "chance"),
        ),
        Chart(
            "Held-out gain over the reference by domain",
            "Reward minus that of the reference's responses to the same prompt. Unlike raw rewards of a reward model, "
            "gains have one level in all domains.",
            REWARD_UNIT,
            ("eval/gain/domain/*",),
            baseline=(0.0, "the reference"),
        ),
        Chart("Gain over the reference by domain", "", REWARD_UNIT, ("gain/domain/*",), baseline=(0.0, "reference")),
        Chart("Disagreement of the reward models by domain", "", REWARD_UNIT, ("disagreement/domain/*",)),
    ),
)  # fmt: skip
#: A signal whose AUC lies this much over that of the run's own is worth naming.
_BETTER = 0.05
_PROMPTS = 4


@dataclass(frozen=True)
class ShownGroup:
    """An inferred group as the page shows it. what: a sentence. prompts: those that belong to it most."""

    name: str
    colour: str
    what: str
    prompts: list[str]


def verdicts(run: RunData) -> list[str]:
    """Sentences on what the run's signals and its reward model know; none where nothing of it was logged."""
    found = _on_pairs_trained(run)
    if (text := _on_signals(run)) and run.option("algorithm.groups_from") == "classifier":
        found.append(text)
    for key, what in (("domain", "domain"), ("group", "inferred group")):
        shares = {name: run.last(f"pairs/accuracy/{key}/{name}") for name in run.keys(f"pairs/accuracy/{key}/")}
        if shares:
            parts = ", ".join(f"{readable(name)} {share:.0%}" for name, share in shares.items() if share is not None)
            found.append(f"Held-out pairs that the reward model orders as labelled, by {what}: {parts} (chance: 50%).")
    gains = {name: run.last(f"eval/gain/domain/{name}") for name in run.keys("eval/gain/domain/")}
    if len(gains) > 1:
        parts = ", ".join(f"{readable(name)} {gain:+.3f}" for name, gain in gains.items() if gain is not None)
        found.append(f"Held-out reward gained over the reference, by domain: {parts}.")
    return found


def _on_pairs_trained(run: RunData) -> list[str]:
    """Of a reward model's own run: its held-out accuracy by domain."""
    names = run.keys("eval/accuracy/domain/") if run.kind == "train_reward" else []
    last = {name: float(run.values(f"eval/accuracy/domain/{name}")[-1]) for name in names}
    if not last:
        return []
    parts = ", ".join(f"{readable(name)} {share:.0%}" for name, share in last.items())
    return [
        f"Held-out pairs that it orders as labelled, by domain: {parts} (chance: 50%). Where this is chance, no policy "
        "can be raised by it. Noise of the labels bounds it: pairs that people find hard to tell apart keep it low."
    ]


def _on_signals(run: RunData) -> str:
    areas = {name: area for name in SIGNALS if (area := run.last(f"signal/auc/{name}")) is not None}
    own, groups = str(run.option("algorithm.signal") or ""), run.last("group/domain_auc")
    if own not in areas or groups is None:
        return ""
    best = max(areas, key=lambda name: areas[name])
    text = (
        f"The groups tell the known domains apart with an AUC of {groups:.2f} (0.5: not at all); the signal that they "
        f"are inferred from, {SIGNALS[own]}, does so with {areas[own]:.2f} by itself"
    )
    if areas[best] > areas[own] + _BETTER:
        text += f", and the best of those that were logged, {SIGNALS[best]}, with {areas[best]:.2f}"
    if own != "gain" and not run.option("algorithm.reference_samples") and areas[own] < 0.6:
        text += (
            ". The level of a reward model's rewards between prompts is arbitrary: algorithm.reference_samples=4 logs "
            "what gains over the reference would know"
        )
    return f"{text}."


def groups(run: RunData) -> list[ShownGroup]:
    """The inferred groups by the prompts, among those sampled in the last tenth of the run, that belong to each most;
    none where the run infers none."""
    if run.option("algorithm.groups_from") != "classifier":
        return []
    rows = [row for row in run.samples if not is_example(row) and _probabilities(row)]
    steps = sorted({row["step"] for row in rows})[-run.window :]
    rows = [row for row in rows if row["step"] in steps]
    count = max((len(_probabilities(row)) for row in rows), default=0)
    return [_group(run, rows, group) for group in range(count)] if count > 1 else []


def _group(run: RunData, rows: list[dict[str, Any]], group: int) -> ShownGroup:
    members = [row for row in rows if max(range(len(p := _probabilities(row))), key=p.__getitem__) == group]
    members.sort(key=lambda row: -_probabilities(row)[group])
    domains = Counter(readable(row.get("domain") or "") for row in members)
    mass, best = run.last(f"group/{group}/mass"), run.values("group/best")
    parts = [f"{mass:.0%} of the responses" if mass is not None else ""]
    parts.append("taken for the best group (g_high)" if len(best) and int(best[-1]) == group else "")
    if sum(domains.values()) and set(domains) - {""}:
        shares = ", ".join(f"{n / len(members):.0%} {name}" for name, n in domains.most_common(4))
        parts.append(f"of {len(members)} sampled members {shares}")
    prompts = list(dict.fromkeys(prompt_shown(row.get("prompt", "")) for row in members))[:_PROMPTS]
    what = "; ".join(filter(None, parts)) or "no sampled member"
    return ShownGroup(f"Group {group}", group_colour(str(group)), what, prompts)


def _probabilities(row: dict[str, Any]) -> list[float]:
    found = row.get("group_probs")
    return [p for p in found if isinstance(p, (int, float))] if isinstance(found, list) else []
