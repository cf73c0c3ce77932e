"""What a page shows and where: which pairs, in which order, which side, which of them twice, and which test attention.

All draws depend on --seed and on a secret of the evaluation's folder: who has the page, the seed and this program, but
not the folder, cannot make them again.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gipo_mc.errors import ConfigError, DataError
from gipo_mc.evaluation.pairs import Pair
from gipo_mc.evaluation.people.key import Kind, Side
from gipo_mc.parallel.streams import generator, permutation
from gipo_mc.run.jsonl import read_file, storage_errors, write_atomically

#: Stands above one response of an attention pair.
PLEASE = "Please choose this response: it is here to see that both are read."
#: Below so many pairs nothing is repeated or tested by default.
_FEW = 4
_SECRET = "secret.txt"


@dataclass(frozen=True)
class Item:
    """One screen of a page. asked: the side that an attention pair asks for, None for the other kinds."""

    pair: Pair
    kind: Kind
    ours_first: bool
    asked: Side | None = None

    @property
    def sides(self) -> tuple[str, str]:
        """The texts as they are shown, left and right."""
        ours, theirs = shown_text(self.pair.ours), shown_text(self.pair.theirs)
        left, right = (ours, theirs) if self.ours_first else (theirs, ours)
        if self.asked == "left":
            return f"{PLEASE}\n\n{left}", right
        return left, f"{PLEASE}\n\n{right}" if self.asked else right


@dataclass(frozen=True)
class Ballot:
    """items: in the order of the page. identical: pairs of the same sample that nobody is asked about."""

    items: list[Item]
    identical: list[Pair]


def shown_text(text: str) -> str:
    """A response as people see it: without the blank around it, which tells models apart and nothing else."""
    return text.strip()


def read_secret(pages: Path) -> str:
    """The secret of the folder `pages`, made the first time. Raises StorageError, DataError."""
    path = pages / _SECRET
    if not path.exists():
        with storage_errors(path):
            pages.mkdir(parents=True, exist_ok=True)
        write_atomically(path, secrets.token_hex(16) + "\n")
    try:
        found = read_file(path).decode("ascii", "replace").strip()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(found) < 32:
        raise DataError(f"{path} is damaged. Remove it: the next page makes another; pages that exist stay valid.")
    return found


def make_ballot(
    pairs: Sequence[Pair], secret: str, seed: int, wanted: int | None, repeats: int | None, attention: int | None
) -> Ballot:
    """Choose and lay out the pairs of a page.

    wanted: how many pairs, None for one of each prompt. repeats, attention: how many hidden ones besides; None for a
    tenth and a twentieth. Raises ConfigError where that many cannot be had, DataError where no two responses differ.
    """
    sample = _sample(pairs, secret, seed)
    shown, identical = [], []
    rest = iter(sample)
    for pair in rest:
        if _alike(pair):
            identical.append(pair)
            continue
        shown.append(pair)
        if len(shown) == wanted:
            break
    if not shown:
        raise DataError("There is nothing to vote on: in every pair both responses are the same text.")
    if wanted is not None and len(shown) < wanted:
        raise ConfigError(
            f"--pairs={wanted}: there are {len(shown)} prompts whose two responses differ, and a page shows each "
            "prompt once. Ask for no more, or judge more prompts first."
        )
    repeats = _share(len(shown), 10) if repeats is None else repeats
    attention = _share(len(shown), 20) if attention is None else attention
    unseen = [pair for pair in rest if not _alike(pair)]
    half = math.ceil(len(shown) / 2)
    if repeats + max(attention - len(unseen), 0) > half:
        raise ConfigError(
            f"A page of {len(shown)} pairs can show {half} of them again: {repeats} repeats and {attention} attention "
            f"pairs are too many, with {len(unseen)} prompts that the page does not show otherwise. Ask for fewer."
        )
    return Ballot(_lay_out(shown, unseen, repeats, attention, generator(seed, f"people/{secret}/layout")), identical)


def _alike(pair: Pair) -> bool:
    return shown_text(pair.ours) == shown_text(pair.theirs)


def _share(pairs: int, part: int) -> int:
    return math.ceil(pairs / part) if pairs >= _FEW else 0


def _sample(pairs: Sequence[Pair], secret: str, seed: int) -> list[Pair]:
    """One pair of each prompt, in a random order that does not depend on the seed.

    Two pairs of one prompt share our response: seen together, they would tell which it is. Prompts take the opponents
    in turn, and each seed begins one further: with K opponents, the seeds 0 to K - 1 show every pair once.
    """
    prompts: dict[str, list[Pair]] = {}
    for pair in pairs:
        prompts.setdefault(pair.prompt, []).append(pair)
    options = [sorted(found, key=lambda pair: (pair.opponent, pair.pair)) for found in prompts.values()]
    order = permutation(0, f"people/{secret}/prompts", 0, len(options))
    return [options[place][(rank + seed) % len(options[place])] for rank, place in enumerate(order)]


def _lay_out(
    shown: Sequence[Pair], unseen: Sequence[Pair], repeats: int, attention: int, draw: np.random.Generator
) -> list[Item]:
    """Sides by coin; the pairs in random order; each repeat, sides swapped, at least a third of the page behind the
    first showing; attention pairs anywhere but at the start.

    An attention pair takes a prompt that the page does not show otherwise; where there is none, it is one of the page
    again, placed like a repeat.
    """
    count = len(shown)
    order = [shown[i] for i in draw.permutation(count)]
    first = draw.random(count) < 0.5
    placed = [(float(i), Item(order[i], "pair", bool(first[i]))) for i in range(count)]

    def later(i: int) -> float:
        least = i + count / 3
        return float(least + draw.random() * (count - least))

    early = [int(i) for i in draw.permutation(math.ceil(count / 2))]
    placed += [(later(i), Item(order[i], "repeat", not first[i])) for i in early[:repeats]]
    again = iter(early[repeats:])
    for number in range(attention):
        asked: Side = "left" if draw.random() < 0.5 else "right"
        ours_first = bool(draw.random() < 0.5)
        if number < len(unseen):
            place, pair = float(draw.uniform(min(1, count / 3), count)), unseen[number]
        else:
            i = next(again)
            place, pair = later(i), order[i]
        placed.append((place, Item(pair, "attention", ours_first, asked)))
    return [item for _, item in sorted(placed, key=lambda entry: entry[0])]
