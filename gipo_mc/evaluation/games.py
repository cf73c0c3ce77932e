"""One comparison of two responses by one evaluator, in the only form that the statistics see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: "identical": both responses are the same text, a tie that nobody was asked about. "invalid": no verdict could be had;
#: it is counted and shown, and never a win, a tie or a loss.
Outcome = Literal["ours", "theirs", "tie", "identical", "invalid"]
#: All people are one evaluator under this name; the games of one of them are "people:NAME".
PEOPLE = "people"


@dataclass(frozen=True)
class Game:
    """One pair of responses, shown once in one order to one evaluator.

    pair: id of the pair; the two orders and all repeats of a comparison share it.
    conversation: what is resampled: pairs of one dialogue are not independent.
    opponent: label of the policy that ours plays against. evaluator: name of the judge, or "people:NAME".
    domain: label of the row, "" without one. group: inferred group of our response, None without a classifier.
    ours_first: our response was shown first. repeat: 0, 1, ... of the same question.
    ours_length, theirs_length: tokens of the responses.
    """

    pair: str
    conversation: str
    opponent: str
    evaluator: str
    domain: str
    group: int | None
    ours_first: bool
    repeat: int
    outcome: Outcome
    ours_length: int
    theirs_length: int
