"""The reward of a response: what every reward is, and a reward model (its tokenizer may differ from the policy's).

Functions, servers and several rewards at once are in `reward_sources/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import DataConfig, ParallelConfig
from gipo_mc.data.encode import encoder_of
from gipo_mc.data.reading import RewardReader
from gipo_mc.errors import DataError
from gipo_mc.models.micro_batch import micro_batches, run_forward
from gipo_mc.models.readout import sequence_rewards
from gipo_mc.parallel.engine import Engine
from gipo_mc.types import Prompt, Rollout, Sequences


class Reward(Protocol):
    """The reward of whole responses."""

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        """float32 [B] on the layout's device, the same on every rank. prompts: those of the rollout, in its order."""
        ...


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
