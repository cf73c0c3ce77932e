"""The reward of a response: a reward-model checkpoint (its tokenizer may differ from the policy's) or a function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import DataConfig, ParallelConfig
from gipo_mc.data.encode import encoder_of
from gipo_mc.data.reading import RewardReader
from gipo_mc.errors import ConfigError, DataError, users_code
from gipo_mc.models.micro_batch import micro_batches, run_forward
from gipo_mc.models.readout import sequence_rewards
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.limits import limited
from gipo_mc.types import Prompt, Rollout, Sequences

#: f(prompts, responses, domains) -> one reward each, in any units. NaN or infinity: there is none for that response.
RewardFunction = Callable[[list[str], list[str], list[str]], list[float]]

_FUNCTION = "python:"


class Reward(Protocol):
    """The reward of whole responses."""

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        """float32 [B] on the layout's device, the same on every rank. prompts: those of the rollout, in its order."""
        ...


def is_function(name: str) -> bool:
    """Does this value of model.reward name a Python function?"""
    return name.startswith(_FUNCTION)


def load_function(name: str, key: str = "model.reward") -> RewardFunction:
    """The function behind "python:package.module:function", the value of `key`. Raises ConfigError; imports the
    module."""
    try:
        module, function = name.removeprefix(_FUNCTION).split(":")
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # importing runs the user's module, which may raise anything
        raise ConfigError(
            f"{key}={name}: the function cannot be loaded ({type(error).__name__}: {error}). Write "
            "python:package.module:function, with the module on PYTHONPATH; it is called as "
            "f(prompts, responses, domains) and returns one number each."
        ) from error
    if not callable(found):
        raise ConfigError(f"{key}={name} is a {type(found).__name__}, not a function.")
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FunctionReward:
    """A Python function, called on one rank (it may be slow, or not deterministic); its answer goes to all."""

    name: str
    function: RewardFunction
    tokenizer: PreTrainedTokenizerBase
    layout: Layout

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        def work() -> list[float]:
            texts = responses(rollout.sequences, self.tokenizer)
            with users_code(self.name), limited(f"The reward function {self.name}"):
                found = self.function([prompt.text for prompt in prompts], texts, list(rollout.domain_B))
                rewards = [self._number(reward, row) for row, reward in enumerate(found)]
            if len(rewards) != len(prompts):
                raise DataError(f"{self.name} returned {len(rewards)} rewards for {len(prompts)} responses.")
            return rewards

        return torch.tensor(on_main(work), dtype=torch.float32, device=self.layout.device)

    def _number(self, reward: object, row: int) -> float:
        try:
            return float(reward)  # type: ignore[arg-type]  # or the error below
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise DataError(
                f"{self.name} returned {reward!r:.100} for response {row}: a number is expected, NaN where there is "
                "none."
            ) from error


class ModelReward:
    """A reward model, read at the last token of the responses as `RewardReader` gives them to it.

    chat_template: are the policy's data rendered with its chat template? data: the other options of rendering. stop:
    rollout.stop.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase,
        parallel: ParallelConfig,
        chat_template: bool = False,
        data: DataConfig | None = None,
        stop: Sequence[str] = (),
    ) -> None:
        self.engine = engine
        self._parallel = parallel
        data = (data or DataConfig()).model_copy(update={"chat_template": chat_template})
        self.reader = RewardReader(tokenizer, policy_tokenizer, data, stop)

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        sequences = self.read(prompts, rollout)
        packed = micro_batches(sequences, self._parallel, self.engine.layout)
        return run_forward(self.engine, packed, sequence_rewards(), {"reward": 0})["reward"]

    def read(self, prompts: Sequence[Prompt], rollout: Rollout) -> Sequences:
        """What the model is given to read. Raises DataError where it is too long for it."""
        sequences = self.reader(prompts, rollout)
        if sequences is rollout.sequences:
            return sequences
        longest = int((sequences.prompt_length_B + sequences.response_length_B).max())
        positions: int = self.engine.model.max_sequence_length  # type: ignore[assignment]
        if longest > positions:
            raise DataError(
                f"A response is {longest} tokens long with its prompt in the reward model's tokenizer, but that model "
                f"has {positions} positions: lower data.prompt_length or rollout.max_new_tokens."
            )
        return sequences


def responses(sequences: Sequences, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of each response, without special tokens, as it continues its prompt."""
    rows = zip(
        sequences.tokens_BL.tolist(),
        sequences.prompt_length_B.tolist(),
        sequences.response_length_B.tolist(),
        strict=True,
    )
    return encoder_of(tokenizer).texts([ids[start : start + n] for ids, start, n in rows])
