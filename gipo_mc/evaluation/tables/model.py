"""What a table holds: the contents of table.json, which the text, the export and the report read."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from gipo_mc.errors import DataError
from gipo_mc.evaluation.statistics.bootstrap import Interval
from gipo_mc.evaluation.statistics.outcomes import Design
from gipo_mc.run.jsonl import read_file, write_atomically

#: Raised whenever a field of table.json changes its name or its meaning.
VERSION = 1
FILE = "table.json"

#: What the pairs of a cell are, and which of several cells is named.
Scope = Literal["all", "domain", "group"]
End = Literal["worst", "best"]


@dataclass(frozen=True)
class Ties:
    """Pairs that tie, by cause; their sum is the number of ties.

    both: both orders (or every vote) tie. one: one order ties, the other has a winner. flipped: each order has
    another winner. identical: the same text, nobody was asked. split: the votes of people cancel out.
    """

    both: int
    one: int
    flipped: int
    identical: int
    split: int


@dataclass(frozen=True)
class LeftOut:
    """What is in no other figure. invalid_games: games without a verdict. invalid_pairs: pairs of which an order has no
    valid game. other_order: pairs seen in one order by a judge that is shown both."""

    invalid_games: int
    invalid_pairs: int
    other_order: int


@dataclass(frozen=True)
class SignTest:
    """ours, theirs: conversations whose margins add up to a net winner. p: two-sided, exact. holm: p adjusted for the
    evaluator's cells of this scope; None for groups and for a policy against itself."""

    ours: int
    theirs: int
    p: float
    holm: float | None


@dataclass(frozen=True)
class Cell:
    """One evaluator, one opponent, all pairs or those of a domain or group. Shares and margins are fractions, not per
    cent.

    label: of domain or group; of "all": the only domain, else "". wins, tied, losses: pairs; win, tie, lose: their
    shares. games: valid ones. margin: mean of both games' scores, -1 to 1. simultaneous: the margin's interval that
    holds for all domains, or groups, of this opponent at once; None under 30 pairs, or with fewer than two of them.
    controlled: the margin at equal lengths; None for groups, and where `not_controlled` says why. first: share of the
    decided games won by the response shown first; None without one. flipped_to_first: flipped pairs both of whose games
    went to the response shown first. ours_length, theirs_length: mean tokens.
    """

    opponent: str
    scope: Scope
    label: str
    pairs: int
    conversations: int
    games: int
    wins: int
    tied: int
    losses: int
    win: Interval
    tie: Interval
    lose: Interval
    margin: Interval
    simultaneous: Interval | None
    controlled: Interval | None
    not_controlled: str
    sign_test: SignTest
    ties: Ties
    first: Interval | None
    flipped_to_first: int
    left_out: LeftOut
    ours_length: float
    theirs_length: float


@dataclass(frozen=True)
class Unjudged:
    """A cell without a single pair that has an outcome."""

    opponent: str
    scope: Scope
    label: str
    left_out: LeftOut


@dataclass(frozen=True)
class Extreme:
    """The worst or best domain or group against an opponent. pairs, margin: of domains on all pairs, with the
    simultaneous interval; of groups on the half of the conversations that had no part in the choice."""

    opponent: str
    scope: Literal["domain", "group"]
    end: End
    label: str
    pairs: int
    margin: Interval


@dataclass(frozen=True)
class Strength:
    """Bradley-Terry strength in Elo points; ours is 0."""

    policy: str
    elo: Interval


@dataclass(frozen=True)
class Evaluator:
    """Everything one judge, or people together, say. notes: sentences that a reader of the figures must know."""

    name: str
    design: Design
    voters: int
    cells: list[Cell]
    unjudged: list[Unjudged]
    extremes: list[Extreme]
    strengths: list[Strength]
    notes: list[str]


@dataclass(frozen=True)
class Table:
    """version: of this form. confidence: of every interval. conversations: those that the bootstrap draws from."""

    version: int
    seed: int
    draws: int
    confidence: float
    least_pairs: int
    conversations: int
    evaluators: list[Evaluator]


def write_table(folder: Path, table: Table) -> None:
    """Write table.json into the folder, whole or not at all. Raises StorageError."""
    write_atomically(folder / FILE, json.dumps(asdict(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_table(folder: Path) -> Table:
    """The table of an evaluation's folder. Raises DataError where there is none, or none of this version."""
    path, place = folder / FILE, shlex.quote(str(folder))
    try:
        text = read_file(path).decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there: run `gipo-mc evaluate table {place}` first.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    try:
        found = json.loads(text)
        if isinstance(found, dict) and found.get("version") != VERSION:
            raise DataError(
                f"{path} is of version {found.get('version')!r}, this program reads {VERSION}: run "
                f"`gipo-mc evaluate table {place}` again."
            )
        return TypeAdapter(Table).validate_python(found)
    except (ValueError, RecursionError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DataError(
            f"{path} is no table of this program ({problem}): run `gipo-mc evaluate table {place}` again."
        ) from error
