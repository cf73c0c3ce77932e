"""A source -> examples: format detection, domain labels, and what happens to malformed rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from gipo_mc.config import DataConfig
from gipo_mc.data.fields import Fields, LeftOut, RowError, UnknownFormat, names_of, other_names
from gipo_mc.data.formats import BOTH, Example, detect, parse
from gipo_mc.data.named import BUILTIN
from gipo_mc.data.sets import SourceReport
from gipo_mc.data.sources import BadRow, RawRow, domain_of_source, read_rows
from gipo_mc.errors import ConfigError, DataError, did_you_mean

#: With data.on_error=quarantine: a source with more malformed rows than both of these is the wrong file.
QUARANTINE_SHARE, QUARANTINE_ROWS = 0.05, 10
_NEEDS: dict[str, tuple[str, ...]] = {
    "prompts": (),
    "demonstrations": ("chosen",),
    "preferences": ("chosen", "rejected"),
}


def examples(source: str, kind: str, label: str, data: DataConfig, report: SourceReport) -> Iterator[Example]:
    """Examples of a source, each with a domain: `label`, else the row's own, else one from the source's name.

    data.columns says which names the fields have in the rows. data.max_rows counts rows read. Malformed rows stop the
    loading (strict) or are counted in `report` (quarantine). kind: prompts, demonstrations or preferences: decides the
    fields a row must have, and which are passed on (of a pair, prompts need neither response). Raises DataError, and
    ConfigError where data.format is of no file.
    """
    if data.format == BUILTIN:
        raise ConfigError(
            f"data.format=builtin is for the source 'builtin', not for {source}: set auto, or the format."
        )
    fallback = label or domain_of_source(source)
    malformed = 0
    unseen = set(data.columns.values())
    for row in islice(read_rows(source), data.max_rows or None):
        report.read += 1
        try:
            if isinstance(row, BadRow):
                raise RowError(row.reason)
            fields = Fields(row.fields, data.columns)
            unseen -= row.fields.keys()
            if not report.format:
                _require_columns(row, fields, kind, data)
                is_auto = data.format == "auto"
                # Of a copy: what it asks for is not read yet.
                report.format = detect(Fields(row.fields, data.columns), _NEEDS[kind]) if is_auto else data.format
            example = parse(fields, report.format, _NEEDS[kind])
            _require(example, kind, report.format, fields)
            report.unused.update(fields.unused())
        except RowError as error:
            # What the first row has under another name, no row has under its own.
            advice = other_names(fields, error.lacks) if report.read == 1 and error.lacks else ""
            problem = f"{row.where}: {error}" + f": {advice}" * bool(advice)
            if data.on_error == "strict":
                of_all = bool(advice) or isinstance(error, UnknownFormat)
                raise DataError(f"{problem}.{_remedy(report, data, of_all)}") from None
            malformed += 1
            report.left_out["malformed rows"] = malformed
            report.add_problem(problem)
        except LeftOut as reason:
            report.left_out[str(reason)] += 1
        else:
            yield replace(
                example,
                chosen=example.chosen if kind != "prompts" else None,
                rejected=example.rejected if kind == "preferences" else None,
                domain=label or example.domain or fallback,
                row=Path(row.where).name,
                columns=row.fields,
            )
    if report.read > malformed:
        report.absent = _absent(unseen, kind, label, data)
    if malformed > QUARANTINE_ROWS and malformed > QUARANTINE_SHARE * report.read:
        taken = f" ({guess}, by the first row)" if (guess := _guess(report, data)) else ""
        raise DataError(
            f"{source}: {malformed} of {report.read} rows are malformed, more than {QUARANTINE_SHARE:.0%}: this may be "
            f"the wrong file or the wrong data.format{taken}. The first ones:\n  " + "\n  ".join(report.problems)
        )


def _guess(report: SourceReport, data: DataConfig) -> str:
    """The format that the first row was taken for; "" where the configuration names it, or none was known."""
    return report.format if data.format == "auto" else ""


def _remedy(report: SourceReport, data: DataConfig, of_all: bool) -> str:
    """What to do about a malformed row of a strict source. of_all: the problem is that of every row."""
    said = "" if of_all else "\nCorrect or remove the row, or set data.on_error=quarantine to skip malformed rows."
    if report.read == 1 and (guess := _guess(report, data)):
        said += f" Auto takes it for {guess}: set data.format where it is another."
    return said


def _absent(unseen: set[str], kind: str, label: str, data: DataConfig) -> dict[str, str]:
    """Columns that no row of a source has, with the field that each stands for, where something else was read in place
    of it, or nothing. data.columns is for all sources, of which each use reads its own fields."""
    seen = {field for field, column in data.columns.items() if column not in unseen}
    of_no_matter = {*BOTH} - {*_NEEDS[kind]}
    if "messages" in seen:  # a dialogue has all of it in itself
        of_no_matter |= {"prompt", *BOTH}
    elif "prompt" in seen:
        of_no_matter.add("messages")
    if label:
        of_no_matter.add("domain")
    return {column: field for field, column in data.columns.items() if column in unseen and field not in of_no_matter}


def _require_columns(row: RawRow, named: Fields, kind: str, data: DataConfig) -> None:
    """Raises DataError where the first row of a source lacks a column that data.columns names for the prompt or a
    response that the use needs. Others may come in later rows, or be of other sources."""
    # A dialogue has its responses in itself, and is one of two ways to give a prompt.
    needed = () if "messages" in named else ("prompt", *_NEEDS[kind])
    if "messages" not in named and "prompt" not in named:
        needed = ("messages", *needed)
    fields = [(field, column) for field, column in data.columns.items() if field in needed and field not in named]
    if fields:
        hints = (did_you_mean(column, map(str, row.fields), most=1) for _, column in fields)
        near = next(filter(None, hints), "")
        remedy = f"{near} Correct" if near else ": correct"
        several = len({*getattr(data, kind), *data.evaluation}) > 1
        others = (
            " The names hold for every source: where another one has them, rewrite its rows with the fields' own "
            f"names ({', '.join(field for field, _ in fields)})."
        )
        raise DataError(
            f"{row.where}: data.columns names {', '.join(f'{column} (for {field})' for field, column in fields)}, and "
            f"the row has only {', '.join(map(str, row.fields)) or 'no fields'}{remedy} the name, or leave it out."
            + others
            * several
        )


def _require(example: Example, kind: str, format_name: str, row: Fields) -> None:
    missing = [name for name in _NEEDS[kind] if getattr(example, name) is None]
    if missing:
        raise RowError(
            f"there is no {' and no '.join(missing)} response in this row of format {format_name}, which {kind} need; "
            f"the row has {', '.join(names_of(row))}",
            lacks=[name for name in missing if name not in row],
        )
