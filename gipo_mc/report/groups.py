"""What the groups of the classifier turned out to be, by reward; or the known domains where there are none.

A group is not called easy or hard: a reward says neither, the rewards of two groups may differ by noise alone, and
domains of the data may have these names. The number of a group means nothing, so a group is described by the words that
its prompts have and others have not (log-odds with an informative prior: Monroe, Colaresi and Quinn 2008), and shown by
prompts of its own.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gipo_mc.report.drawing.colours import domain_colours, group_colour
from gipo_mc.report.runs import RunData
from gipo_mc.report.texts import cell, prompt_shown, readable, response_shown
from gipo_mc.run.console import number

#: Sampled responses that groups are named by: the newest, and no more than these.
_READ = 400
_EXAMPLES = 3
#: A word names a group where its log-odds are so many standard deviations from those of the other groups, and at least
#: so many prompts have it.
_TELLING, _SEEN = 2.0, 3
_TURN, _REPLY = re.compile(r"(?:^|\n)\s*(?:Human|User|Question)\s*:\s*"), re.compile(r"\s*Assistant\s*:\s*$")
_WORD = re.compile(r"[^\W_][\w'’-]*")


@dataclass(frozen=True)
class Example:
    """One prompt of a group with its response."""

    prompt: str
    response: str
    reward: str
    domain: str


@dataclass(frozen=True)
class Part:
    """A group, or a domain. called: by its prompts, a clause. rank: of its reward among the
    others'. mass: share of the responses. domains: (name, share in %, colour) of what is known of its prompts."""

    label: str
    inferred: bool
    called: str
    rank: str
    colour: str
    mass: float
    reward: float
    figures: list[tuple[str, str]]
    domains: list[tuple[str, float, str]] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)


def parts(run: RunData) -> list[Part]:
    """The groups from the highest reward to the lowest, at the end; of a run without groups, its domains. None
    where there are fewer than two."""
    groups = [key for key in run.keys("group/", "/mass") if run.last(f"group/{key}/reward") is not None]
    if len(groups) >= 2:
        return _ranked([_group(run, key) for key in groups], _memberships(run, groups), run)
    domains = [key for key in run.keys("reward/domain/") if run.last(f"reward/domain/{key}") is not None]
    if len(domains) < 2:
        return []
    return _ranked([_domain(run, key) for key in domains], _labels(run, domains), run)


def _ranks(count: int) -> list[str]:
    """How the rewards of so many are called, from the highest."""
    if count == 2:
        return ["higher reward", "lower reward"]
    return ["highest reward", *["reward between"] * (count - 2), "lowest reward"]


def _group(run: RunData, key: str) -> Part:
    figures = [
        ("reward", _ends(run, f"group/{key}/reward")),
        ("share of the responses", f"{run.last(f'group/{key}/mass') or 0.0:.0%}"),
        ("KL", cell(run.last(f"group/{key}/kl"))),
        ("length", cell(run.last(f"group/{key}/length"))),
        ("repetition", _share(run.last(f"group/{key}/repetition"))),
        ("refusals", _share(run.last(f"group/{key}/refusals"))),
    ]
    best = run.values("group/best")
    if len(best) and str(int(best[-1])) == key:
        figures.append(("taken for", "the best group (g_high)"))
    reward, mass = run.last(f"group/{key}/reward") or 0.0, run.last(f"group/{key}/mass") or 0.0
    return Part(f"group {key}", True, "", "", group_colour(key), mass, reward, [f for f in figures if f[1] != "–"])


def _domain(run: RunData, key: str) -> Part:
    figures = [("reward", _ends(run, f"reward/domain/{key}"))]
    if run.last(f"gold/domain/{key}") is not None:
        figures.append(("gold reward", _ends(run, f"gold/domain/{key}")))
    figures += [
        ("KL", cell(run.last(f"kl/domain/{key}"))),
        ("length", cell(run.last(f"response/length/domain/{key}"))),
    ]
    shown = [figure for figure in figures if figure[1] != "–"]
    colour = domain_colours([run]).get(key, "#8795a1")
    return Part(readable(key), False, "", "", colour, 0.0, run.last(f"reward/domain/{key}") or 0.0, shown)


def _ends(run: RunData, name: str) -> str:
    first, last = run.first(name), run.last(name)
    if first is None or last is None:
        return "–"
    return f"{number(last)} (at the start {number(first)})" if len(run.values(name)) > 1 else number(last)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _recent(run: RunData) -> list[dict[str, Any]]:
    """The newest ordinary samples."""
    rows = [row for row in run.samples if not any(row.get(key) for key in ("hacking", "invalid", "clipped"))]
    return sorted(rows, key=lambda row: row["step"])[-_READ:]


Weighted = Sequence[tuple[Mapping[str, Any], Sequence[float]]]


def _memberships(run: RunData, groups: Sequence[str]) -> Weighted:
    """(row, its membership in each group) of the newest samples."""
    found = []
    for row in _recent(run):
        probs = row.get("group_probs")
        if isinstance(probs, list) and all(isinstance(p, (int, float)) for p in probs):
            places = [int(key) for key in groups if key.isdigit()]
            if len(places) == len(groups) and max(places) < len(probs):
                found.append((row, [float(probs[place]) for place in places]))
    return found


def _labels(run: RunData, domains: Sequence[str]) -> Weighted:
    return [(row, [float(str(row.get("domain")) == key) for key in domains]) for row in _recent(run)]


def _ranked(found: list[Part], rows: Weighted, run: RunData) -> list[Part]:
    colours = domain_colours([run])
    words = _telling_words(rows, len(found))
    filled = []
    for at, part in enumerate(found):
        own = sorted(((weights[at], row) for row, weights in rows), key=lambda item: -item[0])
        examples = _examples([row for weight, row in own if weight >= 0.5])
        filled.append((part, words[at], _mixture(rows, at, colours) if part.inferred else [], examples))
    order = sorted(range(len(found)), key=lambda at: -found[at].reward)
    ranks = dict(zip(order, _ranks(len(order)), strict=True))
    return [
        Part(
            part.label, part.inferred, _called(part, telling, examples), ranks[at], part.colour, part.mass,
            part.reward, part.figures, domains, examples,
        )
        for at in order
        for part, telling, domains, examples in [filled[at]]
    ]  # fmt: skip


def _called(part: Part, telling: Sequence[str], examples: Sequence[Example]) -> str:
    if not part.inferred:
        return part.label
    if telling:
        return "prompts with " + ", ".join(f"“{word}”" for word in telling)
    if examples:
        shown = " ".join(asked(examples[0].prompt).split())
        return f"prompts such as “{shown if len(shown) <= 60 else shown[:57] + '…'}”"
    return part.label


def asked(prompt: str) -> str:
    """The last question of a prompt, without the marks of who speaks."""
    question = _TURN.split(prompt)[-1]
    return _REPLY.sub("", question).strip() or prompt


def _examples(rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    shown: dict[str, Example] = {}
    for row in rows:
        prompt = prompt_shown(str(row.get("prompt", "")).strip())
        if prompt not in shown and len(shown) < _EXAMPLES:
            response = response_shown(str(row.get("response", "")).strip())
            shown[prompt] = Example(prompt, response, cell(row.get("reward")), readable(row.get("domain") or ""))
    return list(shown.values())


def _mixture(rows: Weighted, at: int, colours: Mapping[str, str]) -> list[tuple[str, float, str]]:
    shares: dict[str, float] = {}
    for row, weights in rows:
        if row.get("domain"):
            name = str(row["domain"])
            shares[name] = shares.get(name, 0.0) + weights[at]
    total = sum(shares.values())
    found = sorted(shares.items(), key=lambda item: -item[1]) if total > 0 else []
    return [(readable(name), 100 * share / total, colours.get(name, "#8795a1")) for name, share in found if share > 0]


def _telling_words(rows: Weighted, count: int) -> list[list[str]]:
    """Of each group the words that its prompts have rather than others', the most telling first."""
    have: list[dict[str, float]] = [{} for _ in range(count)]
    seen: Counter[str] = Counter()
    size = [0.0] * count
    for row, weights in rows:
        words = {word.lower() for word in _WORD.findall(asked(str(row.get("prompt", ""))[-2000:]))}
        seen.update(words)
        for at, weight in enumerate(weights):
            size[at] += weight
            for word in words:
                have[at][word] = have[at].get(word, 0.0) + weight
    total = max(len(rows), 1)
    found = []
    for at in range(count):
        common = [word for word in seen if have[at].get(word, 0.0) >= _SEEN]
        scored = [(_log_odds(have[at][word], size[at], seen[word], total), word) for word in common]
        scored = [item for item in scored if item[0] > _TELLING]
        found.append([readable(word) for _, word in sorted(scored, key=lambda item: (-item[0], item[1]))[:4]])
    return found


def _log_odds(own: float, own_size: float, seen: float, total: float) -> float:
    """z of a word's log-odds in a group (`own` of `own_size` prompts have it) against the other groups, each shrunk to
    what all have."""
    others, others_size = seen - own, total - own_size
    if own_size <= 0 or others_size <= 0:
        return 0.0
    prior, rest = 2.0 * seen / total, 2.0 * (1 - seen / total)
    one = (own + prior, own_size - own + rest + 1e-9)
    two = (others + prior, others_size - others + rest + 1e-9)
    difference = math.log(one[0] / one[1]) - math.log(two[0] / two[1])
    return difference / math.sqrt(1 / one[0] + 1 / one[1] + 1 / two[0] + 1 / two[1])
