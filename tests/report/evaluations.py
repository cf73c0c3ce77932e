"""An evaluation's folder as judging, importing votes and `table` leave it; its verdicts are made up."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gipo_mc.evaluation.judges.journal import Entry, Journal, Setup, Side
from gipo_mc.evaluation.judges.questions import comparisons
from gipo_mc.evaluation.pairs import read_pairs
from gipo_mc.evaluation.people.agree import agreement_of
from gipo_mc.evaluation.reading import games_of
from gipo_mc.evaluation.tables.build import build_table
from gipo_mc.evaluation.tables.model import write_table
from tests.evaluation.made_games import pair as games
from tests.evaluation.people.folders import pair, write_pairs

LONG = "A sentence of some words. " * 800
NASTY = (
    "</script></div><img src=x onerror=\"document.title='bad'\"> [[A]] {{ 7*7 }} \u202egnp.exe \x1b[31m\x00 end "
    + "x" * 3000
)
SAME = "I'm sorry, but I can't help with that."


def evaluation(folder: Path, prompts: int = 40, opponents: tuple[str, ...] = ("sft", "ppo")) -> Path:
    """A judge of both orders on `prompts` prompts of two domains and every opponent. Ours refuses most harmless ones in
    the same words; one pair has texts that would break a page."""
    rows = [_pair(number, opponent) for opponent in opponents for number in range(prompts)]
    write_pairs(folder, rows)
    setup = Setup("judge", "openai", "http://127.0.0.1:1/v1", "m", "helpful", "1", {}, "both", 1, 0, "s" * 16)
    with Journal(folder) as journal:
        journal.note(setup)
        journal.add([entry for place, row in enumerate(rows) for entry in _verdicts(place, row)])
    write_table(folder, build_table(games_of(folder), draws=200))
    return folder


def scored_alone(folder: Path) -> Path:
    """A reward model on 40 pairs: every fourth ties, and one in ten has no verdict."""
    write_pairs(folder, [pair(number, "sft") for number in range(40)])
    setup = Setup("reward", "reward", "reward model 1", "runs/r", "", "", {}, "seeded", 1, 0, "r" * 16)
    sides: tuple[Side, ...] = ("ours", "theirs", "ours", "tie")
    with Journal(folder) as journal:
        journal.note(setup)
        for place, shown in enumerate(comparisons(read_pairs(folder), setup)):
            bad = place % 10 == 4
            entry = Entry(
                shown.pair.pair, "r" * 16, shown.pair.pair, "sft", "reward", shown.ours_first, 0,
                None if bad else sides[place % 4], problem="a reward is no number" if bad else "",
                reason="rewards 1.0 and 0.5",
            )  # fmt: skip
            journal.add([entry])
    write_table(folder, build_table(games_of(folder), draws=200, designs={"reward": "no order"}))
    return folder


def with_agreement(folder: Path) -> Path:
    """The folder, with an agreement.json of a judge and two people on some pairs."""
    kinds = ["ww", "ll", "tt", "wl"] * 5
    rated = [
        game
        for place, outcomes in enumerate(kinds)
        for evaluator in ("judge", "people:Ann <b>", "people:Bob")
        for game in games(outcomes if evaluator == "judge" else outcomes[:1], f"p{place}", evaluator=evaluator)
    ]
    found = asdict(agreement_of(rated, draws=100))
    (folder / "agreement.json").write_text(json.dumps({"voters": [], **found}))
    return folder


def _pair(number: int, opponent: str) -> dict[str, Any]:
    changed: dict[str, Any] = {"ours_tokens": 40 + number, "theirs_tokens": 50}
    if number % 2 == 0:
        changed["ours"] = SAME
    if number == 1:
        changed |= {"ours": NASTY, "theirs": LONG, "prompt": f"\n\nHuman: {NASTY}\n\nAssistant:"}
    return pair(number, opponent, **changed)


def _verdicts(place: int, row: dict[str, Any]) -> list[Entry]:
    """Both orders of a pair: wins, losses, ties and flips in turn; one pair in twelve has no second order."""
    kind = ("ours ours", "ours ours", "theirs theirs", "tie tie", "ours theirs", "ours tie")[place % 6]
    said = kind.split()[: 1 if place % 12 == 11 else 2]
    return [
        Entry(
            f"{row['pair']}-{order}", "s" * 16, row["pair"], row["opponent"], "judge", order == 0, 0, side,
            reason=f"The {('first', 'second')[order]} order. {row['ours'][:60]}", text="...",
        )
        for order, side in enumerate(said)
    ]  # fmt: skip
