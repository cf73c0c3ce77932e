"""Pairs: our response and an opponent's to the same prompt, as pairs.jsonl keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gipo_mc.errors import DataError
from gipo_mc.evaluation.games import Game, Outcome
from gipo_mc.evaluation.responses import Response, check_aligned, chosen_prompts, conversation_of, is_count, text_hash
from gipo_mc.run.jsonl import encode, read_file, write_atomically

FILE = "pairs.jsonl"


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt.

    pair: 16 digits, a hash of prompt, both texts and opponent. prompt: turns as HH-RLHF writes them, or a text. group:
    inferred from our response, None without a classifier. *_tokens: lengths. *_truncated: cut at
    rollout.max_new_tokens. *_model: "name [checkpoint, hash of the weights]".
    """

    pair: str
    row: str
    conversation: str
    domain: str
    group: int | None
    opponent: str
    prompt: str
    ours: str
    theirs: str
    ours_tokens: int
    theirs_tokens: int
    ours_truncated: bool
    theirs_truncated: bool
    ours_model: str
    theirs_model: str

    @property
    def identical(self) -> bool:
        """A tie that nobody need be asked about."""
        return self.ours == self.theirs

    def game(self, evaluator: str, ours_first: bool, repeat: int, outcome: Outcome) -> Game:
        """What an evaluator said of the pair, as statistics see it."""
        return Game(
            pair=self.pair,
            conversation=self.conversation,
            opponent=self.opponent,
            evaluator=evaluator,
            domain=self.domain,
            group=self.group,
            ours_first=ours_first,
            repeat=repeat,
            outcome=outcome,
            ours_length=self.ours_tokens,
            theirs_length=self.theirs_tokens,
        )


def make_pairs(
    ours: Mapping[str, Response],
    opponents: Mapping[str, Mapping[str, Response]],
    names: Mapping[str, str],
    *,
    count: int = 0,
    seed: int = 1,
) -> list[Pair]:
    """Pairs by opponent, in the order of our responses.

    ours: by prompt hash, as `read_responses` gives them. opponents: the same by label. names: of the files, by label
    and "ours", for errors. count: prompts to take, drawn by seed; 0: all. Raises DataError where the prompts differ.
    """
    for label, theirs in opponents.items():
        check_aligned(ours, theirs, (names["ours"], names[label]))
    chosen = chosen_prompts(ours, count, seed)
    return [
        _pair(label, mine, theirs[key])
        for label, theirs in opponents.items()
        for key, mine in ours.items()
        if key in chosen
    ]


def _pair(opponent: str, ours: Response, theirs: Response) -> Pair:
    mine, other = ours.text, theirs.text
    return Pair(
        pair=text_hash(ours.dialogue, mine, other, opponent),
        row=ours.row or theirs.row,
        conversation=conversation_of(ours.dialogue, ours.conversation or theirs.conversation),
        domain=ours.domain or theirs.domain,
        group=ours.group,
        opponent=opponent,
        prompt=ours.dialogue,
        ours=mine,
        theirs=other,
        ours_tokens=ours.tokens,
        theirs_tokens=theirs.tokens,
        ours_truncated=ours.truncated,
        theirs_truncated=theirs.truncated,
        ours_model=ours.model,
        theirs_model=theirs.model,
    )


def write_pairs(folder: Path, pairs: Sequence[Pair], warn: Callable[[str], None] = lambda text: None) -> None:
    """Make pairs.jsonl these pairs. warn: told of opponents that it held and that are not among them now."""
    path = folder / FILE
    if path.exists():
        gone = {pair.opponent for pair in read_pairs(folder)} - {pair.opponent for pair in pairs}
        if gone:
            warn(
                f"{path} held pairs with {', '.join(sorted(gone))}, which --against does not name now. Their verdicts "
                "stay in the journal; name them again to have them in the table."
            )
    write_atomically(path, "".join(encode(asdict(pair)) + "\n" for pair in pairs))


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs of an evaluation's folder, in order. Raises DataError where it is none, or damaged."""
    path = folder / FILE
    try:
        lines = read_file(path).decode("utf-8").split("\n")
    except OSError as error:
        raise DataError(
            f"{folder} is no evaluation: {path} cannot be read ({error.strerror or error}). Make it with "
            "gipo-mc evaluate judge --ours F --against label=F --out DIR."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged ({error.reason} at byte {error.start + 1}): judge again.") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                pairs.append(_checked(json.loads(line)))
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not a pair: {error}. Judge again, which writes it anew.") from error
    return pairs


_KINDS: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "int | None": (int, type(None)),
}


def _checked(row: Any) -> Pair:
    """Raises ValueError or TypeError."""
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is expected, this is a {type(row).__name__}")
    pair = Pair(**row)
    for entry in fields(Pair):
        if type(getattr(pair, entry.name)) not in _KINDS[str(entry.type)]:
            raise ValueError(f"{entry.name} is no {entry.type}")
    for name in ("ours_tokens", "theirs_tokens"):
        if not is_count(getattr(pair, name)):
            raise ValueError(f"{name} is no count")
    if pair.group is not None and not is_count(pair.group):
        raise ValueError("group is neither null nor the number of one")
    return pair
