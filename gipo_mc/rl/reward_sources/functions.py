"""Rewards by a Python function. It is called on one rank, for it may be slow or not deterministic; its answer goes to
all. Which of the four forms it has is read from its signature:

    def f(sample)                         one response at a time: a number
    def f(samples)                        all responses of an iteration: a number for each, in their order
    def f(prompts, responses, domains)    the same with three lists of strings, the form that every version has taken
    async def ...                         any of these; of the first form `reward.workers` calls run at a time

`sample` is a `gipo_mc.types.Sample`. Whether one or all are wanted is told by the annotation of the only parameter, or
by its name: `samples`, `rows`, `batch`, `responses` and `completions` stand for all.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config.reward import FUNCTION, RewardConfig
from gipo_mc.errors import ConfigError, DataError, users_code
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.limits import limited
from gipo_mc.rl.reward_sources import event_loop
from gipo_mc.rl.reward_sources.samples import numbers, samples_of
from gipo_mc.types import Prompt, Rollout, Sample

#: Any of the forms above.
RewardFunction = Callable[..., Any]
Form = Literal["sample", "samples", "texts"]

_ALL = ("samples", "rows", "batch", "responses", "completions")
_OF_MANY = re.compile(r"([\w.]+\.)?(list|sequence|iterable|collection|tuple)\b", re.IGNORECASE)
_FORMS = "f(sample), f(samples) or f(prompts, responses, domains)"
#: Functions that were handed over as objects (`gipo_mc.train`), by their names.
_given: dict[str, RewardFunction] = {}


@contextmanager
def given_function(name: str, function: RewardFunction) -> Iterator[None]:
    """Let `name`, python:..., stand for a function that need not be importable: a closure, a method, one of a
    notebook."""
    before = _given.get(name)
    _given[name] = function
    try:
        yield
    finally:
        del _given[name]
        if before is not None:
            _given[name] = before


def load_function(name: str, key: str = "model.reward") -> RewardFunction:
    """The function behind "python:package.module:function", the value of `key`. Raises ConfigError; imports the
    module."""
    if name in _given:
        return _given[name]
    try:
        module, function = name.removeprefix(FUNCTION).split(":")
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # importing runs the user's module, which may raise anything
        raise ConfigError(
            f"{key}={name}: the function cannot be loaded ({type(error).__name__}: {error}). Write "
            f"python:package.module:function, with the module on PYTHONPATH; it is called as {_FORMS}."
        ) from error
    if not callable(found):
        raise ConfigError(f"{key}={name} is a {type(found).__name__}, not a function.")
    return found  # type: ignore[no-any-return]


def form_of(function: RewardFunction, name: str = "The reward function") -> Form:
    """How a function is to be called. Raises ConfigError where it takes neither one argument nor three."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C, without a signature
        return "texts"
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    takes_three = any_number or len(needed) == 3 or (len(needed) != 1 and len(places) >= 3)
    if takes_three and len(needed) <= 3 and not keywords:
        return "texts"
    if keywords or len(needed) != 1:
        raise ConfigError(
            f"{name} takes {', '.join([*(p.name for p in needed), *keywords]) or 'no argument'}: a reward function is "
            f"called as {_FORMS}, async or not."
        )
    annotation = needed[0].annotation
    if annotation is not inspect.Parameter.empty:
        text = annotation if isinstance(annotation, str) else str(annotation)
        if _OF_MANY.match(text):
            return "samples"
        if text.rpartition(".")[2].rstrip("'>") == Sample.__name__:
            return "sample"
    return "samples" if needed[0].name in _ALL else "sample"


@dataclass(frozen=True)
class FunctionReward:
    """A reward by a function of the user's. settings: what happens where it fails. warn: told of what is left out.

    Raises, on every rank, DataError where it fails or answers with no number, unless reward.on_error=skip.
    """

    name: str
    function: RewardFunction
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    settings: RewardConfig = field(default_factory=RewardConfig)
    warn: Callable[[str], None] = lambda text: None

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        """float32 [B], NaN where there is no reward."""
        form = form_of(self.function, self.name)

        def work() -> tuple[list[float], str]:
            samples = samples_of(prompts, rollout, self.tokenizer)
            with limited(f"The reward function {self.name}"):
                rewards, wrong = self._one_by_one(samples) if form == "sample" else self._at_once(samples, form)
            return rewards, "" if wrong is None else str(wrong)

        rewards, wrong = on_main(work)
        if wrong:
            self.warn(f"reward.on_error=skip: {wrong}")
        return torch.tensor(rewards, dtype=torch.float32, device=self.layout.device)

    def _at_once(self, samples: list[Sample], form: Form) -> tuple[list[float], DataError | None]:
        arguments: tuple[Any, ...] = (samples,)
        if form == "texts":
            arguments = tuple([getattr(s, part) for s in samples] for part in ("prompt", "response", "domain"))
        try:
            with users_code(self.name):
                answer = self.function(*arguments)
                if inspect.isawaitable(answer):
                    answer = event_loop.run(_waited_for(answer))
                answer = list(answer) if not isinstance(answer, str | bytes | dict) and _has_parts(answer) else answer
        except DataError as error:
            if self.settings.on_error == "stop":
                raise
            return [math.nan] * len(samples), error
        return numbers(answer, len(samples), self.name, skip=self.settings.on_error == "skip")

    def _one_by_one(self, samples: list[Sample]) -> tuple[list[float], DataError | None]:
        """Each response by itself, so that one that fails takes no other with it."""
        found, wrong = [], None
        for row, (answer, failed) in enumerate(self._answers(samples)):
            if failed is not None:
                if self.settings.on_error == "stop":
                    raise failed
                found.append(math.nan)
                wrong = wrong or failed
                continue
            (reward,), odd = numbers([answer], 1, self.name, skip=self.settings.on_error == "skip", first_row=row)
            found.append(reward)
            wrong = wrong or odd
        return found, wrong

    def _answers(self, samples: list[Sample]) -> Iterator[tuple[Any, DataError | None]]:
        """Answer or error of each sample, in order. Calls of an async function run side by side."""
        if _is_async(self.function):
            yield from event_loop.run(self._side_by_side(samples))
            return
        for sample in samples:
            try:
                with users_code(self.name):
                    answer = self.function(sample)
                    if inspect.isawaitable(answer):
                        answer = event_loop.run(_waited_for(answer))
            except DataError as error:
                yield None, error
            else:
                yield answer, None

    async def _side_by_side(self, samples: list[Sample]) -> list[tuple[Any, DataError | None]]:
        free = asyncio.Semaphore(self.settings.workers)

        async def one(sample: Sample) -> tuple[Any, DataError | None]:
            async with free:
                try:
                    with users_code(self.name):
                        return await self.function(sample), None
                except DataError as error:
                    return None, error

        return list(await asyncio.gather(*map(one, samples)))


def _is_async(function: RewardFunction) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _has_parts(answer: object) -> bool:
    try:
        iter(answer)  # type: ignore[call-overload]
    except TypeError:
        return False
    return True


async def _waited_for(answer: Awaitable[Any]) -> Any:
    return await answer
