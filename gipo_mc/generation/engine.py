"""The rollout engine: whatever continues prompts with the policy's weights, on the training ranks or elsewhere.

`rl/rollout.py` knows this protocol and nothing of Megatron; the engine of `megatron.py` needs no second copy of the
weights. docs/recipes/rollout_engine.md says how to add another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from gipo_mc.errors import ConfigError
from gipo_mc.generation.stopping import StopCondition
from gipo_mc.parallel.layout import Layout

#: Told (finished responses, all responses) as generation goes on.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, and when a response ends.

    eos_id: fills up responses. stop_ids: further ids that end a response, as eos_id always does.
    temperature: divides the logits; 0 means greedy at temperature 1. top_p, top_k: see `sampling.filter_logits`.
    greedy: the largest logit each time. stop: see `stopping.stop_on_strings`.
    known_ids: ids from this one on stand for no text (a model may have more rows than its tokenizer has ids) and are
        never drawn; 0: all of the model's.
    """

    max_new_tokens: int
    eos_id: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    stop: StopCondition | None = None
    stop_ids: tuple[int, ...] = ()
    known_ids: int = 0

    def check(self) -> None:
        """Raises ConfigError with every option that has no meaning."""
        problems = []
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature={self.temperature} must be positive (0: greedy)")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p} must be above 0 and at most 1 (1: off)")
        if self.top_k < 0:
            problems.append(f"top_k={self.top_k} must not be negative (0: all)")
        if problems:
            raise ConfigError("Generation cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))


@dataclass(frozen=True)
class Generated:
    """Responses of this replica's prompts, in their order, identical on its TP x PP ranks, on the layout's device.

    response_BT: int64 [B, T], T = max_new_tokens; positions from the response's length on hold the EOS id.
    response_length_B: int64 [B], >= 1, counts the id that ended it and the tokens of a stop string.
    sampler_logp_BT: float32 [B, T], see `Rollout`; 0 in the padding.
    truncated_B: bool [B], True where max_new_tokens came before eos_id, one of stop_ids, or a stop.
    counts: what it took, for the log, under the same names on all replicas, those without prompts too; may be empty.
    """

    response_BT: Tensor
    response_length_B: Tensor
    sampler_logp_BT: Tensor
    truncated_B: Tensor
    counts: Mapping[str, float] = field(default_factory=dict)

    def responses(self) -> list[list[int]]:
        """Token ids without padding."""
        return [ids[:n] for ids, n in zip(self.response_BT.tolist(), self.response_length_B.tolist(), strict=True)]


class RolloutEngine(Protocol):
    """Generates with the policy. Every rank of a replica calls each method with the same arguments."""

    @property
    def layout(self) -> Layout:
        """Where the ranks stand; decides which block of the prompts is this replica's."""
        ...

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a response by what the model's folder says; the tokenizer's are added to them."""
        ...

    def sync_weights(self) -> None:
        """Take over the policy's weights of now. Called before every `generate`."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        uniforms_BT: np.ndarray | Tensor | None = None,
        on_step: Progress | None = None,
    ) -> Generated:
        """Continue each prompt (token ids, at least one) until eos_id, one of stop_ids, a stop, or max_new_tokens.

        uniforms_BT: float64 [B, >= max_new_tokens] in [0, 1), of `assemble.sampling_uniforms`: they decide the tokens,
        so that a response depends on its prompt and not on its batch; not read when greedy.
        Raises ConfigError or DataError before anything is computed, NumericsError where logits are not finite; on all
        ranks of the replica alike.
        """
        ...
