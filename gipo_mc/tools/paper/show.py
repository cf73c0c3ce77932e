"""The steps of a plan before they run: how each stands, and about how long the rest takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gipo_mc.run.jsonl import printable
from gipo_mc.tools.commands import shown
from gipo_mc.tools.paper.drive import command_of
from gipo_mc.tools.paper.durations import Estimate, estimate, in_words
from gipo_mc.tools.paper.standing import Journal, Standing, standing
from gipo_mc.tools.paper.steps import Step


@dataclass(frozen=True)
class Row:
    """A step. state: done, or why it is to run; why: a clause. left: how long it takes. command: as one types it."""

    name: str
    state: str
    why: str
    left: Estimate
    command: str


def rows_of(
    steps: Sequence[Step],
    folder: Path,
    again: Sequence[str] = (),
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> list[Row]:
    """All steps in their order. again: names of those that are made anew. tell: how many are looked at, of how many:
    files are hashed."""
    journal, rows = Journal.read(folder), []
    for number, step in enumerate(steps, start=1):
        stands, redone = standing(step, journal), step.name in again
        left = estimate(step, Standing("left") if redone else stands, journal)
        state, why = ("again", "") if redone else (stands.state, stands.why)
        rows.append(Row(step.name, state, why, left, shown(command_of(step, again=redone))))
        tell(number, len(steps))
    return rows


def show(rows: Sequence[Row], folder: Path, *, commands: bool = False) -> None:
    """Print them, and what is left in all."""
    width = max(len(row.name) for row in rows)
    for row in rows:
        if row.state == "done":
            print(f"{row.name:<{width}}  done     {printable(row.why)}")
        else:
            about = "" if row.left.seconds is None else f"about {in_words(row.left.seconds)}, "
            said = f"{row.why}; " if row.why else ""
            print(f"{row.name:<{width}}  {row.state:<7}  {printable(f'{said}{about}{row.left.basis}')}")
        if commands:
            print(f"    {row.command}")
    open_rows = [row for row in rows if row.state != "done"]
    total, unknown = sum(row.left.seconds or 0.0 for row in open_rows), sum(r.left.seconds is None for r in open_rows)
    rest = f"{len(open_rows)} left, about {in_words(total)}" if open_rows else "nothing left"
    rest += f", and {unknown} that were never measured" if unknown else ""
    print(f"{len(rows)} steps in {printable(str(folder))}: {len(rows) - len(open_rows)} done, {rest}.")


def as_json(rows: Sequence[Row], *, commands: bool = False) -> list[dict[str, Any]]:
    """The same, an object for each step."""
    return [
        {"name": row.name, "state": row.state, "why": row.why, "seconds": row.left.seconds, "basis": row.left.basis}
        | ({"command": row.command} if commands else {})
        for row in rows
    ]
