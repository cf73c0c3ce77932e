"""Sources -> rows: local .json, .jsonl, .parquet and their .gz, or a data set of the hub.

Written in `data.*` as
    data/pairs.jsonl.gz                            a local file
    owner/name                                     a hub data set, split train
    owner/name@test                                another split
    owner/name:subset@train                        a named subset (configuration)
    owner/name/folder@test                         a folder of the repository (Anthropic/hh-rlhf/harmless-base@test)

Parquet and the hub go through the `datasets` library. JSON is read here, line by line, because its reader names
neither the line nor the reason of a malformed row (it infers one schema for the file and fails as a whole).
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gipo_mc.errors import DataError

#: Longest JSON line in bytes. A line beyond it is malformed (a missing line break), whatever it holds.
MAX_LINE = 16 * 2**20
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz", ".gz", ".parquet")
_HUB = re.compile(
    r"^(?P<name>[\w.-]+/[\w.-]+)(?P<folder>(/[\w.-]+)*)(:(?P<subset>[\w.-]+))?(@(?P<split>[\w.\-\[\]:%+]+))?$"
)
_SPLITS = re.compile(r"[-_.]?(train|training|test|valid|validation|val|eval|dev)$", re.IGNORECASE)
#: Suffixes of files that are no JSON unless they begin like it.
_FOREIGN = (".csv", ".tsv", ".txt", ".md", ".xlsx", ".arrow", ".zip", ".zst", ".bz2", ".xz", ".tar", ".tgz", ".yaml")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class RawRow:
    """One JSON object. where: "file:line" or "source:row n"."""

    where: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that is no JSON object, and why."""

    where: str
    reason: str


def read_rows(source: str) -> Iterator[RawRow | BadRow]:
    """Rows of a source, in order. Raises DataError where the source as a whole cannot be read."""
    path = Path(os.path.expanduser(source))
    if path.is_file():
        yield from _parquet(path, source) if path.suffix == ".parquet" else _json(path, source)
        return
    if path.is_dir():
        raise DataError(f"{source} is a folder: name the files in it ({', '.join(_SUFFIXES)}).")
    hub = _HUB.match(source)
    if not hub or not on_hub(source):
        raise DataError(
            f"There is no file {source}. Data is a local {', '.join(_SUFFIXES)} file, a hub data set written "
            "owner/name, owner/name:subset@split or owner/name/folder@split, or 'builtin'."
        )
    yield from _hub(source, hub)


def on_hub(source: str) -> bool:
    """Would `read_rows` ask the hub for it?"""
    here = Path(os.path.expanduser(source)).exists() or source.endswith(_SUFFIXES) or source.startswith(".")
    return not here and bool(_HUB.match(source))


def domain_of_source(source: str) -> str:
    """A label from the name: harmless_base_train.jsonl.gz -> harmless_base, helpful-base/test.jsonl -> helpful-base,
    owner/name/folder@test -> folder."""
    path = Path(os.path.expanduser(source))
    hub = None if source.endswith(_SUFFIXES) else _HUB.match(source)
    if hub and not path.exists():
        return hub["subset"] or Path(hub["folder"] or hub["name"]).name
    name = path.name
    while Path(name).suffix in (".gz", ".json", ".jsonl", ".ndjson", ".parquet"):
        name = Path(name).stem
    return _SPLITS.sub("", name) or path.resolve().parent.name or "data"


# ----------------------------------------------------------------------------------------------------------------- JSON
def _json(path: Path, source: str) -> Iterator[RawRow | BadRow]:
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            start = file.peek(256)[:256]  # type: ignore[attr-defined]
            if not start:
                raise DataError(f"{source} is empty: there is nothing to read.")
            if start.startswith(_UTF16):
                raise DataError(f"{source} is UTF-16 text: save it as UTF-8.")
            start = start.removeprefix(codecs.BOM_UTF8).lstrip()
            if path.suffix.lower() in _FOREIGN and not start.startswith((b"[", b"{")):
                raise DataError(
                    f"{source} holds no JSON: data is JSON lines (.jsonl), a JSON list, either perhaps in a .gz, or "
                    "Parquet; of a table: pandas.read_csv(...).to_json('rows.jsonl', orient='records', lines=True)."
                )
            if start.startswith(b"["):
                yield from _array(file.read(), source)
            else:
                yield from _lines(file, source)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{source} is a damaged .gz file ({error}): fetch or compress it again.") from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}.") from error


def _lines(file: BinaryIO | Any, source: str) -> Iterator[RawRow | BadRow]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        where = f"{source}:{number}"
        if len(line) > MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield BadRow(where, f"the line is longer than {MAX_LINE // 2**20} MiB")
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield _row(line.rstrip(b"\r\n"), where)


def _row(line: bytes, where: str) -> RawRow | BadRow:
    if b"\0" in line:
        return BadRow(where, f"there is a NUL byte at column {line.index(0) + 1}")
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(where, f"byte {error.start + 1} of the line is not UTF-8 ({error.reason})")
    except json.JSONDecodeError as error:
        return BadRow(where, f"not valid JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return BadRow(where, "the JSON is nested too deeply")
    except ValueError as error:  # an integer of thousands of digits
        return BadRow(where, f"not valid JSON: {error}")
    return _object(value, where)


def _object(value: Any, where: str) -> RawRow | BadRow:
    if isinstance(value, dict):
        return RawRow(where, value)
    return BadRow(where, f"the row is a {type(value).__name__}, not an object with fields")


def _array(content: bytes, source: str) -> Iterator[RawRow | BadRow]:
    """A .json file that is one list. Behind a syntax error no row can be found, so there it ends, in error."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{source}:{line}: byte {error.start + 1} of the file is not UTF-8 ({error.reason}).") from None
    decoder = json.JSONDecoder()
    blank = re.compile(r"\s*")
    position, line, counted = text.index("[") + 1, 1, 0
    more = True
    while more:
        position = blank.match(text, position).end()  # type: ignore[union-attr]
        if text.startswith("]", position):
            break
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{source}:{at}: not valid JSON: {reason}. The rest of the list cannot be read.") from None
        yield _object(value, f"{source}:{line}")
        position = blank.match(text, position).end()  # type: ignore[union-attr]
        more = text.startswith(",", position)
        if not more and not text.startswith("]", position):
            at = text.count("\n", 0, position) + 1
            raise DataError(f"{source}:{at}: not valid JSON: a comma or ] is missing. The rest cannot be read.")
        position += more
    rest = blank.match(text, position + 1).end()  # type: ignore[union-attr]
    if rest < len(text):
        at = text.count("\n", 0, rest) + 1
        raise DataError(f"{source}:{at}: there is more behind the list, which would be lost: give each list a file.")


# ----------------------------------------------------------------------------------------------------- datasets library
def _parquet(path: Path, source: str) -> Iterator[RawRow | BadRow]:
    import datasets

    try:
        # Streaming reads the file where it is, without a copy in the cache that every rank would write. `load_dataset`
        # would tell the hub of each file that it reads, and wait for it where there is no network.
        rows = datasets.Dataset.from_parquet(str(path), streaming=True)
        for number, row in enumerate(rows, 1):
            yield RawRow(f"{source}:row {number}", row)
    except Exception as error:  # pyarrow and datasets raise a dozen kinds for a damaged file
        raise DataError(f"{source} is no readable Parquet file: {error}") from error


def _hub(source: str, spec: re.Match[str]) -> Iterator[RawRow | BadRow]:
    import datasets

    options: dict[str, Any] = {"name": spec["subset"], "split": spec["split"] or "train"}
    if spec["folder"]:
        options["data_dir"] = spec["folder"].strip("/")
    try:
        rows = _load_hub(datasets, spec["name"], options)
    except Exception as error:  # the network, the hub and the repository fail in many ways, all the user's to solve
        raise DataError(
            f"There is no file {source}, and no hub data set of this name can be loaded: {error}\nCheck the path; or"
            " the name, subset and split, and the network (HF_HUB_OFFLINE, HF_ENDPOINT)."
        ) from error
    for number, row in enumerate(rows, 1):
        yield RawRow(f"{source}:row {number}", row)


def _load_hub(datasets: Any, name: str, options: dict[str, Any]) -> Any:
    try:
        return datasets.load_dataset(name, **options)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        # Repositories with a loading script (openai/summarize_from_feedback) have a Parquet copy that the hub made,
        # with a folder for each subset.
        folder = options.get("data_dir") or options["name"]
        return datasets.load_dataset(name, data_dir=folder, split=options["split"], revision="refs/convert/parquet")
