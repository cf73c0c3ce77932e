"""Rewards by a Python function. It is called on one rank, for it may be slow or not deterministic; its answer goes to
all. Which of the forms it has: `gipo_mc.run.functions.rewards`.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config.reward import RewardConfig
from gipo_mc.errors import DataError, users_code
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.limits import limited
from gipo_mc.rl.reward_sources import event_loop
from gipo_mc.rl.reward_sources.samples import listed, may_skip, numbers, samples_of, sentence
from gipo_mc.run.functions.rewards import Form, RewardFunction, form_of
from gipo_mc.types import Prompt, Rollout, Sample


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
            return rewards, "" if wrong is None else sentence(wrong)

        try:
            rewards, wrong = on_main(work)
        except DataError as error:
            raise may_skip(error) from error
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
                    answer = event_loop.run(event_loop.of_user(answer))
                answer = listed(answer)
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
                        answer = event_loop.run(event_loop.of_user(answer))
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
                        return await event_loop.of_user(self.function(sample)), None
                except DataError as error:
                    return None, error

        return list(await asyncio.gather(*map(one, samples)))


def _is_async(function: RewardFunction) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
