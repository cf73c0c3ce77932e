"""What the responses of an evaluation look like, policy by policy: the signs of reward hacking in what is compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from gipo_mc.algorithms.responses.likeness import likeness, repetition
from gipo_mc.algorithms.responses.refusals import refuses
from gipo_mc.evaluation.pairs import Pair
from gipo_mc.report.texts import readable, response_shown
from gipo_mc.types import Sequences

#: Words of a response that are compared.
_WORDS = 512
#: An answer that so large a share of the others is nearly the same as is quoted.
_QUOTED_FROM = 0.2


@dataclass(frozen=True)
class PolicyRow:
    """One policy, whole (`domain` "") or in one domain; shares in per cent, as text. example: the response to which
    many others are alike, "" without; count: how many, itself included."""

    policy: str
    domain: str
    responses: str
    length: str
    identical: str
    near: str
    commonest: str
    repetition: str
    refusals: str
    example: str
    count: int


def policies(pairs: Sequence[Pair]) -> list[PolicyRow]:
    """Ours, then each opponent: every prompt once, whole and by domain."""
    ours = {pair.prompt: (pair.ours, pair.ours_tokens, pair.domain) for pair in pairs}
    rows = _rows("ours", ours)
    for opponent in dict.fromkeys(pair.opponent for pair in pairs):
        theirs = {p.prompt: (p.theirs, p.theirs_tokens, p.domain) for p in pairs if p.opponent == opponent}
        rows += _rows(readable(opponent), theirs)
    return rows


def _rows(policy: str, given: dict[str, tuple[str, int, str]]) -> list[PolicyRow]:
    domains = sorted({domain for _, _, domain in given.values()})
    parts = ["", *domains] if len(domains) > 1 else [""]
    rows = [
        _row(policy, part, [(text, tokens) for text, tokens, domain in given.values() if part in ("", domain)])
        for part in parts
    ]
    # One answer is quoted once, where it is most of what is said.
    quoted = {row.example for row in rows[1:]}
    return [replace(rows[0], example="") if rows[0].example in quoted else rows[0], *rows[1:]]


def _row(policy: str, domain: str, given: Sequence[tuple[str, int]]) -> PolicyRow:
    texts = [text for text, _ in given]
    sequences = _sequences(texts)
    alike = likeness(sequences)
    shares_B = alike.shares()
    most = int(shares_B.argmax())
    count = int(alike.near_BB[most].sum()) + 1
    return PolicyRow(
        policy=policy,
        domain=readable(domain),
        responses=f"{len(texts):,}",
        length=f"{sum(tokens for _, tokens in given) / len(given):.0f}",
        identical=_share(alike.identical_B.tolist()),
        near=_share(alike.near_B.tolist()),
        commonest=f"{100 * float(shares_B[most]):.0f} %",
        repetition=_share(repetition(sequences).tolist()),
        refusals=_share(refuses(texts)),
        example=response_shown(texts[most].strip()) if float(shares_B[most]) >= _QUOTED_FROM else "",
        count=count,
    )


def _share(values: Iterable[float]) -> str:
    found = list(values)
    return f"{100 * sum(found) / len(found):.0f} %"


def _sequences(texts: Sequence[str]) -> Sequences:
    """Words as tokens, each text behind a prompt of its own: likeness is between responses to different prompts."""
    known: dict[str, int] = {}
    ids = [[known.setdefault(word, len(known)) for word in text.split()[:_WORDS]] for text in texts]
    length_B = torch.tensor([len(row) for row in ids])
    width = int(length_B.max()) + 1
    tokens = [[row, *words, *[0] * (width - 1 - len(words))] for row, words in enumerate(ids)]
    return Sequences(torch.tensor(tokens), torch.ones(len(ids), dtype=torch.int64), length_B)
