"""Run the steps of a plan one after the other, each as a command of its own; go on where that was interrupted."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from gipo_mc.errors import EXIT_INTERRUPTED, EXIT_REQUEUE
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.jsonl import lock_file, one_line, printable, storage_errors, write_atomically
from gipo_mc.run.terminal.voice import is_quiet, tell
from gipo_mc.tools.commands import attempt, launched, shown
from gipo_mc.tools.paper.standing import Journal, reached, reads_of, refuse_changed, standing
from gipo_mc.tools.paper.steps import Step


def command_of(step: Step, *, again: bool = False) -> list[str]:
    """The words to start. again: a run's earlier attempt is set aside."""
    anew = ["run.resume=false"] if again and step.run else []
    return launched([*step.words, *anew], step.ranks)


def drive(steps: Sequence[Step], folder: Path, again: Sequence[str] = (), *, aside: bool = False) -> int:
    """Run what is not done. Returns 0, or the exit code of the step that failed: those before it are kept. aside: what
    the steps print goes to stderr.

    Raises ConfigError where runs were trained otherwise than the plan says, StorageError where another driver is at
    work in the folder.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        journal = Journal.read(folder)
        refuse_changed([(step.name, standing(step, journal)) for step in steps if step.name not in again])
        for number, step in enumerate(steps, start=1):
            anew = step.name in again
            if not anew:
                stands = standing(step, journal)
                refuse_changed([(step.name, stands)])
                if stands.state == "done":
                    continue
            tell(f"\n=== {step.name} ({number} of {len(steps)})")
            if code := _run(step, journal, again=anew, aside=aside):
                return code
    return 0


def _run(step: Step, journal: Journal, *, again: bool, aside: bool) -> int:
    """One attempt, noted in the journal. The exit code is the run's own where torchrun has only 1 for it."""
    words = [*command_of(step, again=again), *["--quiet"] * is_quiet()]
    tell(shown(words))
    # A run's own folder, too: a start that is refused leaves its code only where that is there.
    for folder in (*(path.parent for path in step.writes), *([step.run] if step.run else [])):
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    before, reads = 0 if again else _at(step), reads_of(step)
    began, clock = time.time(), time.monotonic()
    code, asked = attempt(words, aside=aside)
    if step.run and code:
        code = _code_of_run(step.run, began) or code
    seconds = time.monotonic() - clock
    units = max(0, _at(step) - before) if step.run else (step.units if code == 0 else 0)
    journal.add(step, code, seconds, units, reads)
    if asked:
        code = EXIT_INTERRUPTED if asked == signal.SIGINT else EXIT_REQUEUE
        print("\nStopped as asked. What is finished is kept; the same command goes on from here.", file=sys.stderr)
    elif code == EXIT_REQUEUE:
        print(f"\n{step.name} was asked to stop; the same command goes on from here.", file=sys.stderr)
    elif code:
        said = RunFolder(step.run).read_status().get("message") if step.run else ""
        stands = f"It said: {printable(one_line(str(said)))}" if said else "Its message stands above."
        print(
            f"\nerror: {step.name} ended with exit code {code}. {stands} The steps before it are kept; the same "
            "command goes on with this one.",
            file=sys.stderr,
            flush=True,
        )
    return code


def _at(step: Step) -> int:
    return reached(RunFolder(step.run).read_status()) if step.run else 0


def _code_of_run(run: Path, since: float) -> int:
    """The exit code that an attempt after `since` left in the run's status; 0: it left none."""
    status = RunFolder(run).read_status()
    try:
        started = datetime.fromisoformat(str(status.get("started"))).timestamp()
    except ValueError:
        return 0
    code = status.get("exit_code")
    return code if isinstance(code, int) and started >= int(since) else 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder's lock: two drivers would start the same steps."""

    def not_locked(error: OSError) -> str:
        if isinstance(error, BlockingIOError):
            return f"Another `gipo-mc paper` is at work in {folder}: wait for it, or stop it."
        return f"{folder} cannot be locked ({error.strerror}): choose another disk with the plan's folder."

    descriptor = lock_file(folder / ".lock", not_locked)
    try:
        yield
    finally:
        os.close(descriptor)


def join_tables(steps: Sequence[Step], folder: Path) -> Path | None:
    """Write <folder>/table.md, the exported tables under each other; None where there are none."""
    parts = [
        f"# {step.name.removesuffix('/export')}\n\n{step.writes[0].read_text(encoding='utf-8').strip()}\n"
        for step in steps
        if step.kind == "export"
    ]
    if not parts:
        return None
    write_atomically(folder / "table.md", "\n".join(parts))
    return folder / "table.md"
