"""The key of a page, which stays in the evaluation's folder: whose response stood on which side."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gipo_mc.errors import DataError
from gipo_mc.run.jsonl import read_file

#: Folder of an evaluation with the keys of its pages, HASH.json each.
PAGES = "pages"
Kind = Literal["pair", "repeat", "attention"]
Side = Literal["left", "right"]


class KeyPair(BaseModel):
    """A pair of the sample."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    pair: str
    opponent: str


class KeyItem(KeyPair):
    """What the page hides of an item. asked: the side that an attention pair asks for."""

    kind: Kind
    ours_first: bool
    asked: Side | None


class Key(BaseModel):
    """DIR/pages/HASH.json: which side of which item is ours. Never part of the page.

    items: in the order of the page. identical: pairs of the sample with two equal texts, which are not shown.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    format: Literal["gipo_mc page 1"]
    page: str = Field(pattern="^[0-9a-f]{16}$")
    seed: int
    items: list[KeyItem]
    identical: list[KeyPair]


def read_key(folder: Path, page: str) -> Key:
    """The key of a page. Raises DataError where there is none, or it is damaged."""
    path = folder / PAGES / f"{page}.json"
    if not path.exists():
        raise DataError(
            f"{path} is not there: page {page} was not made from the evaluation {folder}. Give the folder that it was "
            "made from; without the key nobody can tell which side was whose."
        )
    try:
        key = Key.model_validate_json(read_file(path))
    except (OSError, ValidationError) as error:
        raise DataError(f"{path} is damaged. Restore it, or make the page again with the same options.") from error
    if key.page != page:
        raise DataError(f"{path} is the key of page {key.page}: restore the file of this name.")
    return key
