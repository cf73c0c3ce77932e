"""Votes of people: files that pages download, checked and written to DIR/votes.jsonl, and the games that they are."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gipo_mc.errors import DataError
from gipo_mc.evaluation.games import PEOPLE, Game, Outcome
from gipo_mc.evaluation.pairs import Pair
from gipo_mc.evaluation.people.key import Key, KeyItem, KeyPair
from gipo_mc.run.jsonl import encode, read_file, write_atomically

VOTES = "votes.jsonl"
Verdict = Literal["ours", "theirs", "tie", "skip"]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)]
_FORMAT = "gipo_mc votes 1"


class _Vote(BaseModel):
    """One answer as the page writes it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    item: int = Field(ge=0)
    vote: Literal["left", "right", "tie", "skip"]
    seconds: _Seconds


class _File(BaseModel):
    """What a page downloads."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["gipo_mc votes 1"]
    page: str = Field(pattern="^[0-9a-f]{16}$")
    voter: str
    pairs: int
    votes: list[_Vote]


@dataclass(frozen=True)
class Vote:
    """A line of votes.jsonl.

    kind: "pair"; "repeat", the same again with the sides swapped; "attention"; "identical", a pair of two equal texts,
    which is a tie that nobody was asked about. passed: of an attention pair, was the side chosen that it asked for;
    None for the other kinds, and where it was skipped. seconds: on the screen.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    voter: str
    page: str
    pair: str
    opponent: str
    ours_first: bool
    verdict: Verdict
    seconds: float
    kind: Literal["pair", "repeat", "attention", "identical"]
    passed: bool | None = None


_ROW = TypeAdapter(Vote)


def read_votes(folder: Path) -> list[Vote]:
    """The votes that were imported into an evaluation; none where there is no file. Raises DataError, file:line."""
    path = folder / VOTES
    if not path.exists():
        return []
    try:
        lines = read_file(path).split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found += [_ROW.validate_json(line)] if line.strip() else []
        except ValidationError as error:
            raise DataError(
                f"{path}:{number}: not a line of this program ({_reason(error)}). Restore the file, or remove it and "
                "import the votes again."
            ) from error
    return found


def import_votes(
    folder: Path, key: Key, pairs: Sequence[Pair], files: Sequence[Path], *, replace: bool = False
) -> list[Vote]:
    """Add the votes in `files`, made on the page of `key`, to votes.jsonl, all or none. Returns all votes then.

    replace: a voter's earlier votes on this page give way; otherwise they are refused. Raises DataError for a file of
    another page, a damaged one and a voter who is there twice, StorageError.
    """
    known = {pair.pair for pair in pairs}
    keyed: list[KeyPair] = [*key.items, *key.identical]
    if gone := [item for item in keyed if item.pair not in known]:
        raise DataError(
            f"{folder} no longer holds {len(gone)} of the pairs of page {key.page}: it was written anew after the page "
            "was made. Restore its pairs.jsonl; votes on other texts would be counted for these."
        )
    old = read_votes(folder)
    voted = {vote.voter for vote in old if vote.page == key.page}
    new: list[Vote] = []
    seen: dict[str, Path] = {}
    for path in files:
        file = _read(path, key)
        if file.voter in seen:
            raise DataError(
                f"{seen[file.voter]} and {path} are both votes of {file.voter!r}: give the later one. If they are two "
                'people, change "voter" in one file.'
            )
        if file.voter in voted and not replace:
            raise DataError(
                f"{path}: votes of {file.voter!r} on page {key.page} are in {folder / VOTES} already. Add --replace to "
                'put these in their place; if it is another person, change "voter" in the file.'
            )
        seen[file.voter] = path
        new += _votes(file, key)
    kept = [vote for vote in old if vote.page != key.page or vote.voter not in seen]
    rows = kept + new
    write_atomically(folder / VOTES, "".join(encode(asdict(vote)) + "\n" for vote in rows))
    return rows


def _read(path: Path, key: Key) -> _File:
    """A file of votes that fits the page. Raises DataError."""
    try:
        raw = read_file(path).decode("utf-8-sig")
        stated = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{path} cannot be read: {reason}. Ask for the file again; nothing was imported.") from error
    if not isinstance(stated, dict) or stated.get("format") != _FORMAT:
        raise DataError(f"{path} is no file of votes (its format is not {_FORMAT!r}): give what the page downloads.")
    if stated.get("page") != key.page:
        raise DataError(
            f"{path} holds votes on page {str(stated.get('page'))[:40]}, and this is page {key.page}: the sides "
            "would be those of other pairs. Give the page that the votes were made on. Nothing was imported."
        )
    try:
        file = _File.model_validate_json(raw)
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged: {_reason(error)}. Ask for the file again; nothing was imported."
        ) from error
    times = Counter(vote.item for vote in file.votes)
    twice = [item for item, count in times.items() if count > 1]
    problem = ""
    if file.pairs != len(key.items) or max(times, default=0) >= len(key.items):
        problem = f"the page has {len(key.items)} pairs, and the file counts or names others"
    elif twice:
        problem = f"pair {twice[0] + 1} has two votes"
    elif not is_name(file.voter):
        problem = "the voter's name has no letters, too many, or signs other than . _ - and spaces"
    elif not file.votes:
        problem = "it holds no vote"
    if problem:
        raise DataError(f"{path} is damaged: {problem}. Ask for the file again; nothing was imported.")
    return file


def is_name(name: str) -> bool:
    """Is this a name that the page takes? It becomes a part of an evaluator's name, in tables and files."""
    fit = all(unicodedata.category(sign)[0] in "LMN" or sign in " ._-" for sign in name)
    return fit and 0 < len(name) <= 40 and name == name.strip()


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))  # a name in it may be whatever the file holds
    return f"{where[:60] or 'all of it'}: {first['msg']}"


def _votes(file: _File, key: Key) -> list[Vote]:
    """The voter's answers in the order of the page, with sides turned into ours and theirs."""
    found = []
    for vote in sorted(file.votes, key=lambda vote: vote.item):
        item = key.items[vote.item]
        passed = vote.vote == item.asked if item.asked and vote.vote != "skip" else None
        found.append(
            Vote(
                file.voter, key.page, item.pair, item.opponent, item.ours_first, _verdict(vote.vote, item),
                vote.seconds, item.kind, passed,
            )
        )  # fmt: skip
    found += [
        Vote(file.voter, key.page, pair.pair, pair.opponent, True, "tie", 0.0, "identical") for pair in key.identical
    ]
    return found


def _verdict(vote: str, item: KeyItem) -> Verdict:
    if vote == "left":
        return "ours" if item.ours_first else "theirs"
    if vote == "right":
        return "theirs" if item.ours_first else "ours"
    return "tie" if vote == "tie" else "skip"


# --------------------------------------------------------------------------------------------------------------- games
def people_games(votes: Iterable[Vote], pairs: Sequence[Pair]) -> list[Game]:
    """The votes as games of "people:NAME", by name, then in the order of the pairs.

    Repeats and attention pairs are about the voter and make no game; a skipped pair makes none either.
    """
    by_id = {pair.pair: (place, pair) for place, pair in enumerate(pairs)}
    repeats: Counter[tuple[str, str, bool]] = Counter()
    games = []
    for vote in votes:
        if vote.kind not in ("pair", "identical") or vote.verdict == "skip" or vote.pair not in by_id:
            continue
        again = (vote.voter, vote.pair, vote.ours_first)
        outcome: Outcome = "identical" if vote.kind == "identical" else vote.verdict
        pair = by_id[vote.pair][1]
        games.append(pair.game(f"{PEOPLE}:{vote.voter}", vote.ours_first, repeats[again], outcome))
        repeats[again] += 1
    return sorted(games, key=lambda game: (game.evaluator, by_id[game.pair][0]))
