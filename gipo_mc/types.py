"""Prompts, demonstrations, pairs, sequences and rollouts: the data that every layer knows, as frozen dataclasses.

Dimension legend, used as a suffix of tensor names everywhere in the package:
B sequences, L tokens of prompt + response (right-padded), T response time (right-padded),
V vocabulary, M inferred groups, H hidden size, N packed tokens.

Response-aligned tensors [B, T] hold at (i, t) what belongs to response token t of sequence i; entries
with t >= response_length_B[i] are padding and never matter. The state that predicts response token t sits at
position prompt_length_B[i] - 1 + t of the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """One prompt, tokenized.

    index: position in the prompt data set, the key of its random stream.
    domain: known label of the row (for example "harmless"); shown in metrics, never told to the method.
    text: the rendered prompt, what a reward function or a judge is given.
    messages: the dialogue that it was rendered from, for a model that renders it in another way; empty where the row's
        prompt is a text that the policy reads as it stands.
    row: where it was read, "file:line". conversation: what the row says of the dialogue that it is a turn of, or "".
    columns: the row as its file has it, where a reward may ask for it; else empty.
    """

    index: int
    token_ids: tuple[int, ...]
    domain: str
    text: str
    messages: tuple[Message, ...] = ()
    row: str = ""
    conversation: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Sample:
    """One response of the policy with the row that it answers: what a reward function is given.

    prompt: the text that the policy read. response: its text as it continues the prompt, without special tokens.
    domain: label of the row. messages: the dialogue behind the prompt; empty where the row's prompt is a text.
    columns: every column of the row, as its file has it. response_ids: the policy's token ids, EOS included where there
        is one. truncated: did rollout.max_new_tokens cut it?
    row: where the row was read, "file:line". index: its position in the prompt data set.
    """

    prompt: str
    response: str
    domain: str = ""
    messages: tuple[Message, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    response_ids: tuple[int, ...] = ()
    truncated: bool = False
    row: str = ""
    index: int = 0


@dataclass(frozen=True)
class Demonstration:
    """One prompt with the response to imitate (SFT). `response_ids` ends with EOS unless it was truncated."""

    index: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    domain: str


@dataclass(frozen=True)
class PreferencePair:
    """One prompt with a preferred and a dispreferred response. Both end with EOS unless truncated."""

    index: int
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    domain: str


@dataclass(frozen=True)
class Sequences:
    """Prompt + response, right-padded. Every model input is one of these.

    tokens_BL: int64 [B, L], prompt then response then padding.
    prompt_length_B: int64 [B], >= 1.
    response_length_B: int64 [B], >= 0; counts the EOS token when there is one.
    """

    tokens_BL: Tensor
    prompt_length_B: Tensor
    response_length_B: Tensor

    def __len__(self) -> int:
        return int(self.tokens_BL.shape[0])

    def rows(self, index: Tensor) -> Sequences:
        """The given rows (int64 [b]), with the padding that all of them share cut off."""
        prompt, response = self.prompt_length_B[index], self.response_length_B[index]
        longest = int((prompt + response).max()) if len(prompt) else 0
        return Sequences(self.tokens_BL[index, :longest], prompt, response)


@dataclass(frozen=True)
class Rollout:
    """What the policy generated in one iteration, identical on every rank.

    sequences: B = rollout.batch_size prompts with their responses.
    prompt_index_B: int64 [B], `Prompt.index` of each row.
    domain_B: B domain labels.
    sampler_logp_BT: float32 [B, T], log-prob under the sampler's distribution at temperature (before
        top-k and top-p filtering), for the check against the training model's own forward pass.
    truncated_B: bool [B], True where generation stopped at max_new_tokens without EOS or stop.
    counts: what the engine says that it took, the most of any data-parallel replica.
    """

    sequences: Sequences
    prompt_index_B: Tensor
    domain_B: tuple[str, ...]
    sampler_logp_BT: Tensor
    truncated_B: Tensor
    counts: Mapping[str, float] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """T, the width of every response-aligned tensor of this rollout."""
        return int(self.sampler_logp_BT.shape[1])

    def rows(self, index: Tensor) -> Rollout:
        """The given rows (int64 [b]), T unchanged."""
        return Rollout(
            self.sequences.rows(index),
            self.prompt_index_B[index],
            tuple(self.domain_B[row] for row in index.tolist()),
            self.sampler_logp_BT[index],
            self.truncated_B[index],
            self.counts,
        )
