"""What a run says of its reward and of its groups: do the signals know the domains, does the reward model know its
pairs?"""

from __future__ import annotations

from gipo_mc.report.catalogue import REWARD_UNIT, Chapter, Chart
from gipo_mc.report.runs import RunData
from gipo_mc.report.texts import readable

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
            "Held-out pairs, right",
            "Share of pairs that the reward model orders as labelled. A policy that falls here follows its errors.",
            "share of pairs",
            ("pairs/accuracy",),
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
            "Gain over the reference",
            "Reward minus that of the reference's responses to the same prompt. Unlike raw rewards of a reward model, "
            "gains have one level in all domains.",
            REWARD_UNIT,
            ("gain/mean", "eval/gain/mean", "worst/domain_gain"),
            ("on the batch", "held out", "worst domain"),
            baseline=(0.0, "the reference"),
        ),
        Chart(
            "Held-out gain over the reference by domain",
            "The lowest curve is the domain that training neglects.",
            REWARD_UNIT,
            ("eval/gain/domain/*",),
            baseline=(0.0, "the reference"),
        ),
        Chart("Gain over the reference by domain", "", REWARD_UNIT, ("gain/domain/*",), baseline=(0.0, "reference")),
        Chart(
            "Disagreement of the reward models",
            "Their standard deviation for a response. Rising: the policy goes where they were not trained.",
            REWARD_UNIT,
            ("disagreement/mean", "eval/disagreement/mean"),
            ("on the batch", "held out"),
        ),
        Chart("Disagreement of the reward models by domain", "", REWARD_UNIT, ("disagreement/domain/*",)),
        Chart("Held-out disagreement by domain", "", REWARD_UNIT, ("eval/disagreement/domain/*",)),
    ),
)  # fmt: skip
#: A signal whose AUC lies this much over that of the run's own is worth naming.
_BETTER = 0.05


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
