"""What of a plan is done: told from each run's own status and settings and from the journal of finished steps, never
from a folder's being there.

`steps.jsonl` in the plan's folder has a line for each attempt that ended: what was asked, what it read and what it
left, as hashes, and how long it took. A step is done if its last success asked the same, read what is there now, and
left what is there now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from gipo_mc.config import Config, read_by, resume_rule, saved_values, values
from gipo_mc.errors import ConfigError
from gipo_mc.run.folder import RunFolder, fell_silent
from gipo_mc.run.jsonl import JsonLines, read_jsonl
from gipo_mc.tools.paper.steps import Step

#: Options of a run that may change when it continues, and still say what it became.
_MATTER = ("policy.", "critic.")
#: Those that say where it lies.
_PLACE = ("run.dir", "run.name", "run.resume", "run.iterations")


@dataclass(frozen=True)
class Standing:
    """done; left: to do, or to finish; changed: made otherwise than the plan says. why: a clause for a person, "" where
    there is nothing to say. units: how much of it is done already."""

    state: Literal["done", "left", "changed"]
    why: str = ""
    units: int = 0


@dataclass
class Journal:
    """The attempts that ended, of a plan's folder."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Journal:
        """Raises DataError for a line that is none; a last line that a kill cut short is left out."""
        path = folder / "steps.jsonl"
        return cls(path, read_jsonl(path).rows if path.exists() else [])

    def add(self, step: Step, code: int, seconds: float, units: int, reads: dict[str, str]) -> None:
        """Note an attempt. reads: what it read, as it was when it began."""
        row = {
            "step": len(self.rows),
            "name": step.name,
            "kind": step.kind,
            "code": code,
            "seconds": round(seconds, 3),
            "units": units,
            "words": list(step.words),  # for people: what came from the environment is hidden in them
            "asked": asked(step),
            "reads": reads,
            "wrote": {str(path): identity(str(path)) for path in step.writes} if code == 0 else {},
        }
        lines = JsonLines(self.path)
        lines.mend()
        lines.append(row)
        lines.sync()
        self.rows.append(row)

    def success(self, step: Step) -> dict[str, Any] | None:
        """The last success of a step whose results are still what it left."""
        for row in reversed(self.rows):
            if row["name"] == step.name and row["code"] == 0:
                left = {str(path): identity(str(path)) for path in step.writes}
                return row if row["wrote"] == left and "" not in left.values() else None
        return None


def standing(step: Step, journal: Journal) -> Standing:
    """How a step stands. Raises ConfigError where the config.yaml of a run cannot be read."""
    if step.run is not None and step.config is not None:
        return _of_run(step, step.run, step.config, journal)
    made = journal.success(step)
    if made is None:
        return Standing("left")
    if made["asked"] != asked(step):
        return Standing("left", "again: its options changed")
    if changed := different(made["reads"], reads_of(step)):
        return Standing("left", f"again: {changed} changed")
    return Standing("done", f"took {made['seconds']:.0f} s", step.units)


def _of_run(step: Step, run: Path, config: Config, journal: Journal) -> Standing:
    folder = RunFolder(run)
    status = folder.read_status()
    at = reached(status)
    failed = f"failed with exit code {status.get('exit_code')}" if status.get("state") == "failed" else ""
    if at == 0 and not any(run.glob("checkpoints/step_*")):
        return Standing("left", failed)
    if folder.config.is_file() and (found := changed_options(folder.config, config, step.kind)):
        return Standing("changed", "; ".join(found), at)
    made = journal.success(step)
    if made and (name := different(made["reads"], reads_of(step))):
        return Standing("changed", f"{name} is not what it was made from", at)
    if at > step.units:
        return Standing("changed", f"run.iterations: {at} -> {step.units}", at)
    finished = status.get("state") == "done" and status.get("exit_code") == 0 and at == step.units
    if finished and made:
        return Standing("done", f"{at} {step.unit}s", at)
    said = "finished, to be confirmed" if finished else f"at {step.unit} {at} of {step.units}"
    if status.get("state") == "running" and not fell_silent(status):
        said += f", and process {status.get('pid')} on {status.get('host')} is at it"
    return Standing("left", f"{said}, {failed}" if failed else said, at)


def reached(status: Mapping[str, Any]) -> int:
    """The last completed iteration that a run's status tells of."""
    step = status.get("step")
    return step if isinstance(step, int) else 0


def changed_options(saved: Path, config: Config, command: str) -> list[str]:
    """Options that make a run another one than its config.yaml says, a clause each. Names of files are not looked at:
    what they hold is."""
    then, now = _saved(saved, *_stat(saved)), values(config)
    return [
        f"{key}: {then[key]} -> {now[key]}"
        for key in read_by(command)
        if key in then
        and key not in _PLACE
        and not key.startswith("model.")
        and (resume_rule(key) == "fixed" or key.startswith(_MATTER))
        and then[key] != now[key]
    ]


def asked(step: Step) -> str:
    """A hash of a step's command."""
    return hashlib.sha256("\0".join(step.words).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def reads_of(step: Step) -> dict[str, str]:
    """What a step reads, as hashes by name."""
    return {name: identity(source) or source for name, source in step.reads.items()}


def different(then: dict[str, str], now: dict[str, str]) -> str:
    """The first name of what was read that is not the same now; "" where all is."""
    return next((name for name in {**then, **now} if then.get(name) != now.get(name)), "")


def identity(source: str) -> str:
    """A hash of what lies there: a file's content, the newest checkpoint's sums, a folder's files; "" where there is
    nothing (a name of the hub)."""
    path = Path(source)
    if path.is_dir():
        newest = max(path.glob("checkpoints/step_*/MANIFEST.json"), default=None)
        if newest is not None:
            return _sum([newest])
        return _sum(sorted(file for file in path.iterdir() if file.is_file())) if any(path.iterdir()) else ""
    return _sum([path]) if path.is_file() else ""


def _stat(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@cache
def _saved(path: Path, size: int, modified: int) -> dict[str, Any]:
    """The options of a config.yaml that has not changed since it was read last."""
    return saved_values(path)


def _sum(files: Iterable[Path]) -> str:
    return _content(tuple((str(file), *_stat(file)) for file in files))


@cache
def _content(stats: tuple[tuple[str, int, int], ...]) -> str:
    """Of files that have not changed since they were read last."""
    total = hashlib.sha256()
    for name, *_ in stats:
        with open(name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
        if len(stats) > 1:
            total.update(Path(name).name.encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:16]


def refuse_changed(found: Sequence[tuple[str, Standing]]) -> None:
    """Raises ConfigError where runs (their steps' names, and how these stand) were trained otherwise than the plan
    says: days of work are not thrown away, or mixed, without a word of the user."""
    changed = [(name, stands.why) for name, stands in found if stands.state == "changed"]
    if changed:
        lines = "\n".join(f"  - {name}: {why}" for name, why in changed)
        names = " ".join(name for name, _ in changed)
        raise ConfigError(
            f"The plan is not what these runs were trained with:\n{lines}\nPut it back, or give the plan another "
            f"folder, or train them anew with --again {names} (what they have is set aside)."
        )


def with_followers(steps: Sequence[Step], again: Sequence[str]) -> list[str]:
    """The named steps and the training steps that start from their results. Raises ConfigError for an unknown name."""
    known = [step.name for step in steps]
    if unknown := sorted(set(again) - set(known)):
        raise ConfigError(f"--again names {', '.join(unknown)}; --plan shows the names of the steps.")
    chosen: list[str] = []
    written: set[str] = set()
    for step in steps:
        if step.name in again or (step.run and written & set(step.reads.values())):
            chosen.append(step.name)
            written |= {str(path) for path in step.writes}
    return chosen
