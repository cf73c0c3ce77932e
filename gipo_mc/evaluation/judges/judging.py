"""The loop: what a judge has not answered yet is asked, and every answer is in the journal before the next thing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gipo_mc.errors import GipoError
from gipo_mc.evaluation.judges.journal import Entry, Journal, Known, Side
from gipo_mc.evaluation.judges.prompts import Position
from gipo_mc.evaluation.judges.questions import Comparison, Given, Judge, Question, comparisons, questions
from gipo_mc.evaluation.pairs import Pair

#: Problems that an error quotes.
_QUOTED = 3


class TooManyInvalid(GipoError):
    """A judge gave no verdict on more comparisons than its max_invalid allows."""

    exit_code = 8


@dataclass
class Tally:
    """What came of one judge. All but requests and tokens count comparisons.

    identical: ties that nobody was asked about. kept: in the journal before, for this pair or with the same texts for
    another. new: verdicts of this run.
    """

    evaluator: str
    total: int
    identical: int = 0
    kept: int = 0
    new: int = 0
    invalid: int = 0
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    models: set[str] = field(default_factory=set)
    problems: Counter[str] = field(default_factory=Counter)


def to_ask(judge: Judge, pairs: Sequence[Pair], journal: Known) -> tuple[list[Question], list[Entry], Tally]:
    """The requests that are still to be made; the entries of comparisons that a request for another pair has answered
    before; and the count of all that needs no request."""
    setup = judge.setup
    wanted = comparisons(pairs, setup)
    tally = Tally(setup.evaluator, len(wanted))
    tally.identical = sum(comparison.pair.identical for comparison in wanted)
    different = [c for c in wanted if not c.pair.identical]
    left = [c for c in different if not journal.has((setup.setup, c.pair.pair, c.ours_first, c.repeat))]
    found: list[Question] = []
    copies: list[Entry] = []
    for question in questions(judge, left):
        if known := journal.known(question.key):
            copies += [_entry(judge, question, comparison, _again(known)) for comparison in question.comparisons]
        else:
            found.append(question)
    tally.kept = len(different) - len(left) + len(copies)
    return found, copies, tally


def judge_pairs(
    judge: Judge,
    pairs: Sequence[Pair],
    journal: Journal,
    *,
    warn: Callable[[str], None] = lambda text: None,
    advance: Callable[[int, int], None] = lambda done, of: None,
) -> Tally:
    """Ask what is not in the journal yet. advance: told how many requests are answered, of how many.

    Raises TooManyInvalid, as soon as it is certain; JudgeStopped where asking on is useless. The journal then has what
    was answered, and the next run asks for the rest.
    """
    found, copies, tally = to_ask(judge, pairs, journal)
    if copies:
        journal.add(copies)
    tally.models = {e.model for e in journal.entries if e.setup == judge.setup.setup and e.model}
    allowed = int(judge.max_invalid * (tally.total - tally.identical))
    writing = threading.Lock()

    def record(question: Question, given: Given) -> None:
        with writing:
            if not tally.requests:
                journal.note(judge.setup)  # not before: one that answers nothing takes no earlier verdict away
            copy = replace(given, usage=None, asked=0)  # paid for once
            journal.add(
                [
                    _entry(judge, question, comparison, copy if number else given)
                    for number, comparison in enumerate(question.comparisons)
                ]
            )
            _count(tally, question, given, warn)
            advance(tally.requests, len(found))
            if tally.invalid > allowed:
                raise TooManyInvalid(_too_many(judge, tally, allowed))

    if found:
        judge.ask(found, record)
    else:
        journal.note(judge.setup)
    return tally


def _count(tally: Tally, question: Question, given: Given, warn: Callable[[str], None]) -> None:
    tally.requests += 1
    usage = given.usage or {}
    tally.tokens_in += usage.get("prompt_tokens", 0)
    tally.tokens_out += usage.get("completion_tokens", 0)
    if given.model and given.model not in tally.models:
        if tally.models:
            warn(
                f"{tally.evaluator}: the server now answers as {given.model}; before it was "
                f"{', '.join(sorted(tally.models))}. Verdicts of two models are in one journal: give `model` a name "
                "with a date, or judge into a new folder."
            )
        tally.models.add(given.model)
    if given.position is None:
        tally.invalid += len(question.comparisons)
        tally.problems[given.problem] += 1
    else:
        tally.new += len(question.comparisons)


def _too_many(judge: Judge, tally: Tally, allowed: int) -> str:
    why = "; ".join(f"{count} x {problem}" for problem, count in tally.problems.most_common(_QUOTED))
    more = f" and {len(tally.problems) - _QUOTED} other reasons" if len(tally.problems) > _QUOTED else ""
    return (
        f"{tally.evaluator} gave no verdict on {tally.invalid} of {tally.total - tally.identical} comparisons, more "
        f"than the {allowed} that max_invalid={judge.max_invalid:g} allows: {why}{more}. Its answers are in "
        "invalid.jsonl. Correct the judge's file (model, prompt, max_tokens), or allow more; the same command then "
        "asks for what has no verdict."
    )


def _entry(judge: Judge, question: Question, comparison: Comparison, given: Given) -> Entry:
    # A question has one order of texts, but whose is first may differ between its comparisons.
    return Entry(
        key=question.key,
        setup=judge.setup.setup,
        pair=comparison.pair.pair,
        opponent=comparison.pair.opponent,
        evaluator=judge.setup.evaluator,
        ours_first=comparison.ours_first,
        repeat=comparison.repeat,
        verdict=side_of(given.position, comparison.ours_first),
        reason=given.reason,
        text=given.text,
        problem=given.problem,
        finish_reason=given.finish_reason,
        model=given.model,
        usage=given.usage,
        adapted=given.adapted,
        asked=given.asked,
    )


def side_of(position: Position | None, ours_first: bool) -> Side | None:
    """Whose response a verdict prefers."""
    if position is None or position == "tie":
        return position
    return "ours" if (position == "first") == ours_first else "theirs"


def _again(known: Entry) -> Given:
    """What was answered to the same request before, for another pair."""
    position: Position = "tie"
    if known.verdict != "tie":
        position = "first" if (known.verdict == "ours") == known.ours_first else "second"
    return Given(
        position, known.reason, known.text, "", known.finish_reason, known.model, None, tuple(known.adapted), 0
    )
