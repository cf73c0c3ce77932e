"""A reward model in another program: load it, score responses with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from gipo_mc.api import ranks
from gipo_mc.api.texts import PromptLike, messages_of, response_ids
from gipo_mc.config import Config, validate
from gipo_mc.data.chat import plain
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.encode import Encoder
from gipo_mc.data.tokenizer import load_tokenizer
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.rl.rewards import ModelReward
from gipo_mc.run.model_sources import load_model, resolve
from gipo_mc.types import Prompt, Rollout


class RewardModel:
    """A reward model on this process, or on all ranks of a torchrun job, which then make the same calls.

    Made by `load_reward`. Close it, or use it in a `with` block.
    """

    def __init__(self, config: Config, layout: Layout, *, chat: bool) -> None:
        """Used by `load_reward`. Raises ConfigError, CheckpointError."""
        self._layout, self._chat, self._open = layout, chat, True
        source = resolve(config.model.reward, "reward", together=True)
        #: The reward model's tokenizer, of transformers.
        self.tokenizer = load_tokenizer(str(source.folder), chat_template=chat)
        dtype = runtime.resolve_dtype(config.dtype, layout.device)
        model = load_model(source, layout, head="reward", dtype=dtype, trainable=False, seed=config.run.seed)
        self._reward = ModelReward(
            Engine(model, layout), self.tokenizer, self.tokenizer, config.parallel, data=config.data
        )

    def score(
        self,
        prompts: Sequence[PromptLike],
        responses: Sequence[str] | Sequence[Sequence[int]],
        *,
        truncated: Sequence[bool] = (),
    ) -> Tensor:
        """The reward of each response to its prompt, float32 [B] on the CPU, in the model's own units, the same on
        every rank.

        prompts: texts as the model reads them, or dialogues (turns as HH-RLHF writes them; with chat=True by the
        model's chat template). responses: texts as they continue the prompts, or ids of the model's own tokenizer.
        truncated: for each response, was it cut, so that no EOS ends it? Raises DataError.
        """
        if not self._open:
            raise ConfigError("The reward model was closed: load it again.")
        if len(prompts) != len(responses) or len(truncated) not in (0, len(prompts)):
            raise DataError(
                f"There are {len(prompts)} prompts, {len(responses)} responses and {len(truncated)} entries of "
                "truncated: give one for each."
            )
        if not prompts:
            return torch.zeros(0)
        return self._reward(*self._read(prompts, responses, truncated or [False] * len(prompts)))[: len(prompts)].cpu()

    def _read(
        self,
        prompts: Sequence[PromptLike],
        responses: Sequence[str] | Sequence[Sequence[int]],
        truncated: Sequence[bool],
    ) -> tuple[list[Prompt], Rollout]:
        encoder, device = Encoder(self.tokenizer), self._layout.device
        prompts, cut_B = ranks.enough(list(prompts), self._layout), ranks.enough(list(truncated), self._layout)
        dialogues = [messages_of(one, place) for place, one in enumerate(prompts)]
        texts = [
            one if isinstance(one, str) and not self._chat else plain(turns)
            for one, turns in zip(prompts, dialogues, strict=True)
        ]
        ids = encoder.prompts(texts)
        answers = ranks.enough(response_ids(responses, encoder), self._layout)
        if isinstance(responses[0], str):
            answers = [one[:-1] if cut and len(one) > 1 else one for one, cut in zip(answers, cut_B, strict=True)]
        sequences = to_sequences(ids, answers, self.tokenizer.pad_token_id, device)
        rollout = Rollout(
            sequences,
            torch.arange(len(ids), device=device),
            ("",) * len(ids),
            torch.zeros(len(ids), int(sequences.response_length_B.max()), device=device),
            torch.tensor(cut_B, device=device),
        )
        keep = [() if isinstance(one, str) and not self._chat else turns for one, turns in zip(prompts, dialogues)]
        rows = zip(ids, texts, keep, strict=True)
        return [Prompt(row, tuple(own), "", text, turns) for row, (own, text, turns) in enumerate(rows)], rollout

    def close(self) -> None:
        """As `Policy.close`."""
        if self._open:
            self._open = False
            del self._reward
            ranks.release()

    def __enter__(self) -> RewardModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_reward(
    name: str | Path,
    *,
    chat: bool = False,
    device: ranks.Device = "auto",
    dtype: ranks.DType = "auto",
    tensor: int = 1,
    pipeline: int = 1,
) -> RewardModel:
    """Load a reward model: a Hugging Face folder (sequence classification, one label) or hub name, a run of
    scripts/train_reward.py, or one of its checkpoints. Arguments and errors are those of `load_policy`.
    """
    config = validate(
        {
            "model": {"reward": str(name)},
            "data": {"reward_chat_template": "on" if chat else "off"},
            "parallel": {"tensor": tensor, "pipeline": pipeline},
            "device": device,
            "dtype": dtype,
        }
    )
    layout = ranks.acquire(config)
    try:
        return RewardModel(config, layout, chat=chat)
    except BaseException:
        ranks.release()
        raise
