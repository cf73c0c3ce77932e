"""What a person sees while a run goes on: what runs, how far it is, one line an iteration, where the results lie.

On a terminal there are colours and a progress bar; elsewhere (a log file, a pipe) plain lines, and progress only now
and then. Text that comes from data or models is printed with control characters escaped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TextIO

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from gipo_mc.run.jsonl import printable
from gipo_mc.run.terminal.voice import is_quiet
from gipo_mc.run.terminal.waiting import duration, waiting

#: What an evaluation of RL is told by, the truest first: (metric, what the line calls it).
_EVALUATED = (("gold/mean", "gold"), ("eval/reward/mean", "held-out"), ("pairs/accuracy", "pairs right"))
_ASCII = str.maketrans({"±": "+-", "·": "|", "→": "->", "…": "..", "×": "x"})


@dataclass(frozen=True)
class Segment:
    """A piece of an iteration's line. rank: 0 is never dropped; on a narrow terminal the highest rank goes first."""

    text: str
    rank: int
    style: str = ""


class Console:
    """Console of one run. `enabled` is true on one rank only; elsewhere every method does nothing.

    total: iterations of the run. file: stdout by default. width: columns, found by itself on a terminal.
    """

    def __init__(
        self, run_name: str, total: int, enabled: bool = True, file: TextIO | None = None, width: int | None = None
    ) -> None:
        self._name = run_name
        self._total = total
        self._enabled = enabled
        self._rich = rich.console.Console(file=file or sys.stdout, width=width, highlight=False, soft_wrap=True)
        self._step: int | None = None
        self._started = time.monotonic()
        self._first_step: int | None = None
        self._progress: Progress | None = None
        self._depth = 0

    def header(self, lines: Sequence[tuple[str, str] | str]) -> None:
        """What will run: (label, value) pairs in aligned columns, or plain lines."""
        if is_quiet():
            return
        self._print(Segment(self._name, 0, "bold cyan"))
        self._labelled(lines)

    @contextmanager
    def share(
        self, description: str, total: int | None = None, *, logged: bool = True
    ) -> Iterator[Callable[[int, int], None]]:
        """A bar, gone at its end; may be nested. Until something is told it shows that work goes on, and since when.

        Yields f(done, of), in units of the share of one replica, which tells; shown in `total` units (sequences,
        tokens) where that is given. logged: say it where there is no terminal, too.

        >>> with console.share("rollout", 64) as tell:
        ...     tell(1, 8)  # 8 of 64
        """
        label = (
            description if self._step is None else f"[{min(self._step + 1, self._total)}/{self._total}] {description}"
        )
        reached: Callable[[int, int], None]
        with ExitStack() as at_the_end:
            if self._rich.is_terminal and self._enabled and not is_quiet():
                reached = at_the_end.enter_context(self._bar(label, total))
            else:
                reached = at_the_end.enter_context(waiting(label, told=self._enabled, logged=logged))
            yield lambda done, of: reached(done * total // max(of, 1), total) if total else reached(done, of)

    @contextmanager
    def _bar(self, label: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
        if self._progress is None:
            self._progress = self._new_progress()
            self._progress.start()
        self._depth += 1
        bar = self._progress
        task = bar.add_task(self._clean(label), total=total)
        try:
            yield lambda done, of: bar.update(task, completed=done, total=of)
        finally:
            bar.remove_task(task)
            self._depth -= 1
            if self._depth == 0:
                bar.stop()
                self._progress = None

    def iteration(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line on iteration `step`, whatever of the known metrics is there."""
        self._step = step
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._started = step, now
        left = None
        if step > self._first_step:
            left = (now - self._started) / (step - self._first_step) * max(0, self._total - step)
        if not is_quiet():
            self._print(*iteration_segments(step, self._total, metrics, left), fit=True)

    def warn(self, text: str) -> None:
        """A warning, in words."""
        for number, line in enumerate(text.splitlines()):
            self._print(
                Segment("warning: " if number == 0 else "         ", 0, "bold yellow"), Segment(line, 0, "yellow")
            )

    def done(self, lines: Sequence[tuple[str, str] | str]) -> None:
        """The end: where the results lie; with --quiet too, because they are the result."""
        self._print(Segment(f"{self._name}: done", 0, "bold green"))
        self._labelled(lines)

    def _labelled(self, lines: Sequence[tuple[str, str] | str]) -> None:
        width = max((len(line[0]) for line in lines if not isinstance(line, str)), default=0)
        for line in lines:
            if isinstance(line, str):
                self._print(Segment(f"  {line}", 0))
            else:
                self._print(Segment(f"  {line[0]:<{width}}  ", 0, "dim"), Segment(line[1], 0))

    def _print(self, *segments: Segment, fit: bool = False) -> None:
        if not self._enabled:
            return
        shown = [Segment(self._clean(s.text), s.rank, s.style) for s in segments]
        separator = self._clean(" · ") if fit else ""
        if fit and self._rich.is_terminal:
            shown = _fitting(shown, self._rich.width, len(separator))
        line = Text()
        for position, segment in enumerate(shown):
            if fit and position:
                line.append(separator if position > 1 else " ")
            line.append(segment.text, style=segment.style)
        self._rich.print(line)

    def _clean(self, text: str) -> str:
        text = printable(text)
        if self._rich.encoding.lower().startswith("utf"):
            return text
        return text.translate(_ASCII).encode(self._rich.encoding, "backslashreplace").decode(self._rich.encoding)

    def _new_progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            _Count(),
            TimeElapsedColumn(),
            _Left(),
            console=self._rich,
            transient=True,
        )


def on_stderr(enabled: bool = True) -> Console:
    """For the progress of a command whose result goes to stdout."""
    return Console("", 1, enabled=enabled, file=sys.stderr)


class _Count(MofNCompleteColumn):
    """Nothing where the number of steps is not known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Left(TimeRemainingColumn):
    """The time left; nothing before it is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.time_remaining is None else Text.assemble("left ", super().render(task))


def iteration_segments(step: int, total: int, metrics: Mapping[str, float], left: float | None = None) -> list[Segment]:
    """The pieces of an iteration's line, in order. `left`: seconds until the end, where known."""
    segments = [Segment(f"[{step:>{len(str(total))}}/{total}]", 0, "bold")]

    def add(text: str | None, rank: int, style: str = "") -> None:
        if text is not None:
            segments.append(Segment(text, rank, style))

    def one(label: str, name: str, rank: int, unit: str = "", style: str = "") -> None:
        if name in metrics:
            add(f"{label} {number(metrics[name])}{unit}".strip(), rank, style)

    if "reward/mean" in metrics:
        spread = f" ±{number(metrics['reward/std'])}" if "reward/std" in metrics else ""
        add(f"reward {number(metrics['reward/mean'])}{spread}", 0, "green")
    domains = _named(metrics, "reward/domain/", "")
    if domains:
        add(" ".join(f"{name} {number(value)}" for name, value in domains.items()), 3)
    # Of an evaluation the truest: the gold reward is of the same prompts as the held-out one.
    for name, label in [pair for pair in _EVALUATED if pair[0] in metrics][:1]:
        one(label, name, 4)
    if "time/update_critic" in metrics and "time/update_policy" not in metrics:
        add("policy waits for the critic", 1, "yellow")
    one("loss", "loss", 0, style="green")
    one("accuracy", "accuracy", 1)
    one("eval loss", "eval/loss", 1)
    one("eval accuracy", "eval/accuracy", 1)
    one("KL", "kl/mean", 1)
    masses = _named(metrics, "group/", "/mass")
    if masses:
        add("groups " + "/".join(f"{value:.2f}" for value in masses.values()), 5)
    one("R_var", "group/variance", 6)
    one("value EV", "critic/explained_variance", 7)
    one("clip", "policy/clip_fraction", 8)
    one("lr", "lr", 8)
    one("grad norm", "grad_norm", 7)
    one("", "time/total", 2, " s")
    one("", "throughput/tokens_per_second", 9, " tok/s")
    if left is not None:
        add(f"{duration(left)} left", 4, "dim")
    return segments


def _named(metrics: Mapping[str, float], prefix: str, suffix: str) -> dict[str, float]:
    """{name: value} of the metrics `prefix<name>suffix`, sorted by name."""
    cut = -len(suffix) if suffix else None
    return {
        key[len(prefix) : cut]: metrics[key]
        for key in sorted(metrics)
        if key.startswith(prefix) and key.endswith(suffix)
    }


def _fitting(segments: list[Segment], width: int, gap: int) -> list[Segment]:
    kept = list(segments)
    while sum(len(s.text) + gap for s in kept) - gap > width:
        worst = max(kept, key=lambda s: s.rank)
        if worst.rank == 0:
            break
        kept.remove(worst)
    return kept


def number(value: float) -> str:
    """Three significant digits, short: 0.532, 12.3, 4.1k, 3.2e-05, nan."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        return f"{value:.1e}"
    for decimals, bound in ((3, 0.9995), (2, 9.995), (1, 99.95), (0, 999.5)):
        if size < bound:
            return f"{value:.{decimals}f}"
    for unit, scale in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if size < 999.5 * scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.2e}"
