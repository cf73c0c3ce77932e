"""The page that people vote on: one HTML file that loads nothing, and its key, which stays in the evaluation's folder.

The page holds prompts, left and right texts, and guidelines. What would tell the sides is in DIR/pages/HASH.json. HASH
is that of the page's texts, and ties page, key and votes together.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gipo_mc.errors import DataError
from gipo_mc.evaluation.pairs import read_pairs
from gipo_mc.evaluation.people.ballot import Ballot, Item, make_ballot, read_secret, shown_text
from gipo_mc.evaluation.people.guidelines import Guideline, guideline_file, guideline_of
from gipo_mc.evaluation.people.key import PAGES, Key, KeyItem, KeyPair
from gipo_mc.run.jsonl import encode, read_file, storage_errors, write_atomically

_FIRST = "<!doctype html><!-- gipo_mc votes -->"
_DATA = re.compile(rb'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
_TURN = re.compile(r"\n\n(System|Human|Assistant):")
_STATED = re.compile(rb'<meta name="page" content="([0-9a-f]{16})"')


@dataclass(frozen=True)
class Written:
    """A page that was written. opponents: how many of its pairs are with each."""

    path: Path
    key: Path
    hash: str
    pairs: int
    repeats: int
    attention: int
    identical: int
    opponents: dict[str, int]


def is_page(first: str) -> bool:
    """Is this the first line of a page for votes?"""
    return first.startswith(_FIRST)


def write_page(
    folder: Path,
    out: Path,
    *,
    guideline: Path | None = None,
    pairs: int | None = None,
    repeats: int | None = None,
    attention: int | None = None,
    opponents: list[str] | None = None,
    seed: int = 0,
) -> Written:
    """Make the page `out` of the evaluation `folder`, and its key. The same call makes the same page.

    guideline: a text file in place of the defaults. opponents: only pairs with these. The numbers are those of
    `make_ballot`. Raises DataError, ConfigError, StorageError.
    """
    own = guideline_file(guideline) if guideline else None
    known = read_pairs(folder)
    chosen = [pair for pair in known if opponents is None or pair.opponent in opponents]
    if missing := sorted(set(opponents or ()) - {pair.opponent for pair in known}):
        raise DataError(f"{folder} has no pairs with {', '.join(missing)}: it has those with {_labels(known)}.")
    ballot = make_ballot(chosen, read_secret(folder / PAGES), seed, pairs, repeats, attention)
    found = {own or guideline_of(item.pair.domain) for item in ballot.items}
    guides = sorted(found, key=lambda guide: guide.question)
    data = _data(ballot.items, guides, own)
    digest = hash_of(data)
    key = folder / PAGES / f"{digest}.json"
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(key, encode(_key(ballot, digest, seed).model_dump()) + "\n")
    write_atomically(out, _html(data, digest, guides, len(ballot.items)))
    kinds = [item.kind for item in ballot.items]
    labels = [item.pair.opponent for item in ballot.items if item.kind == "pair"]
    return Written(
        out, key, digest, kinds.count("pair"), kinds.count("repeat"), kinds.count("attention"), len(ballot.identical),
        {label: labels.count(label) for label in sorted(set(labels))},
    )  # fmt: skip


def page_hash(path: Path) -> str:
    """The hash of a page, computed from its texts. Raises DataError where it is no page, or was changed."""
    try:
        raw = read_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    data, stated = _DATA.search(raw), _STATED.search(raw)
    if not data or not stated:
        raise DataError(f"{path} is no page for votes: give the file that `evaluate.py page --out` wrote.")
    found = hash_of(data[1].decode("latin-1"))
    if found != stated[1].decode():
        raise DataError(f"{path} was changed after it was made: its texts are not those that its hash was made of.")
    return found


def hash_of(data: str) -> str:
    """16 hexadecimal digits of the texts of a page, as they stand in it."""
    return hashlib.sha256(data.encode("latin-1")).hexdigest()[:16]


def turns_of(prompt: str) -> list[tuple[str, str]]:
    """(who, text) of each turn of a dialogue as HH-RLHF writes it, without the empty turn to be answered; one turn of
    nobody, "", for any other prompt."""
    parts = _TURN.split(f"\n\n{prompt.strip()}")
    if parts[0].strip() or len(parts) < 3:
        return [("", shown_text(prompt))]
    turns = [(who, shown_text(text)) for who, text in zip(parts[1::2], parts[2::2], strict=True)]
    return turns[:-1] if len(turns) > 1 and not turns[-1][1] else turns


def _labels(pairs: list[Any]) -> str:
    return ", ".join(sorted({pair.opponent for pair in pairs}))


def _data(items: list[Item], guides: list[Guideline], own: Guideline | None) -> str:
    """All that the page shows, as JSON in ASCII that ends no script element and opens no comment."""
    rows = []
    for item in items:
        left, right = item.sides
        guide = guides.index(own or guideline_of(item.pair.domain))
        rows.append({"prompt": turns_of(item.pair.prompt), "left": left, "right": right, "guide": guide})
    shown = [{"question": guide.question, "paragraphs": guide.paragraphs} for guide in guides]
    text = json.dumps({"items": rows, "guides": shown}, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _key(ballot: Ballot, digest: str, seed: int) -> Key:
    items = [
        KeyItem(
            pair=item.pair.pair,
            opponent=item.pair.opponent,
            kind=item.kind,
            ours_first=item.ours_first,
            asked=item.asked,
        )
        for item in ballot.items
    ]
    identical = [KeyPair(pair=pair.pair, opponent=pair.opponent) for pair in ballot.identical]
    return Key(format="gipo_mc page 1", page=digest, seed=seed, items=items, identical=identical)


def _html(data: str, digest: str, guides: list[Guideline], count: int) -> str:
    environment = Environment(
        loader=PackageLoader("gipo_mc.evaluation.people"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    folder = files("gipo_mc.evaluation.people").joinpath("templates")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        data=Markup(data), hash=digest, guides=guides, count=count, script=Markup(script), style=Markup(style),
        script_sum=_sum(script), style_sum=_sum(style),
    )  # fmt: skip


def _sum(text: str) -> str:
    """As a Content-Security-Policy names a script: only this one runs."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
