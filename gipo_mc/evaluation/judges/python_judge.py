"""A Python function as the judge: a rule, a model in this process, or a script around another program."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gipo_mc.errors import ConfigError, DataError, users_code
from gipo_mc.evaluation.judge_config import PythonJudgeConfig
from gipo_mc.evaluation.judges.prompts import Position
from gipo_mc.evaluation.judges.questions import Comparison, Given, Question, Record, make_setup
from gipo_mc.run.functions.named import import_function

#: f(prompts, first, second) -> "A", "B", "tie" or None for each.
JudgeFunction = Callable[[list[str], list[str], list[str]], Sequence[str | None]]
_CALLED = "it is called as f(prompts, first, second) and returns A, B or tie for each."
_POSITIONS: Mapping[str, Position] = {"A": "first", "B": "second", "tie": "tie"}


class PythonJudge:
    """A `Judge` of `kind: python`. Its verdicts count until the file that holds the function changes."""

    def __init__(self, config: PythonJudgeConfig, seed: int) -> None:
        self.max_invalid = config.max_invalid
        self._name, self._batch = config.function, config.batch
        self._function, version = load_function(config.function)
        self.setup = make_setup(
            config.name,
            config.kind,
            server=f"python:{config.function}",
            model="",
            version=version,
            settings={},
            orders=config.orders or "both",
            repeats=config.repeats,
            seed=seed,
        )

    def request(self, comparison: Comparison) -> Mapping[str, Any]:
        """What the function is given of one comparison."""
        return {"prompt": comparison.pair.prompt, "first": comparison.first, "second": comparison.second}

    def ask(self, questions: Sequence[Question], record: Record) -> None:
        """In batches. Raises DataError where the function fails, or does not return one verdict for each."""
        for start in range(0, len(questions), self._batch):
            batch = questions[start : start + self._batch]
            for question, verdict in zip(batch, self._call(batch), strict=True):
                record(question, self._given(verdict))

    def _call(self, batch: Sequence[Question]) -> list[Any]:
        requests = [self.request(question.shown) for question in batch]
        columns = [[request[key] for request in requests] for key in ("prompt", "first", "second")]
        with users_code(self._name):
            found = list(self._function(*columns))
        if len(found) != len(batch):
            raise DataError(f"{self._name} returned {len(found)} verdicts for {len(batch)} pairs.")
        return found

    def _given(self, verdict: Any) -> Given:
        if isinstance(verdict, str) and verdict in _POSITIONS:
            return Given(_POSITIONS[verdict], text=verdict)
        said = "no verdict" if verdict is None else f"{verdict!r:.60}, which is none of A, B and tie"
        return Given(None, text="" if verdict is None else f"{verdict!r:.1000}", problem=f"it returned {said}")


def load_function(name: str) -> tuple[JudgeFunction, str]:
    """The function behind "module:function", and a hash of the file that holds it. Imports it. Raises ConfigError, also
    where it cannot be called as a judge is."""
    found = import_function(name, f"function: {name}", f"Write module:function; {_CALLED}")
    _check_form(found, name)
    try:
        source = inspect.getsourcefile(found)
        version = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source else ""
    except (TypeError, OSError):  # a callable object, or a function without a file
        version = ""
    return found, version


def _check_form(function: JudgeFunction, name: str) -> None:
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"function: {name} is async, and a judge's function is not: {_CALLED}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C, without a signature
        return
    try:
        signature.bind([], [], [])
    except TypeError:
        takes = ", ".join(signature.parameters) or "no argument"
        raise ConfigError(f"function: {name} takes {takes}; {_CALLED}") from None
