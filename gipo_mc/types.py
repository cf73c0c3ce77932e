"""What flows between the stages of an iteration, as frozen dataclasses.

Dimension legend, used as a suffix of tensor names everywhere in the package:
B sequences, L tokens of prompt + response (right-padded), T response time (right-padded),
V vocabulary, M inferred groups, H hidden size, N packed tokens.

Response-aligned tensors [B, T] hold at (i, t) what belongs to response token t of sequence i; entries
with t >= response_length_B[i] are padding and never matter. The state that predicts response token t sits at
position prompt_length_B[i] - 1 + t of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One prompt, tokenized.

    index: position in the prompt data set, the key of its random stream.
    domain: known label of the row (for example "harmless"); shown in metrics, never told to the method.
    text: the rendered prompt, what a reward function or a judge is given.
    """

    index: int
    token_ids: tuple[int, ...]
    domain: str
    text: str


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
        longest = int((prompt + response).max()) if len(index) else 0
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
    """

    sequences: Sequences
    prompt_index_B: Tensor
    domain_B: tuple[str, ...]
    sampler_logp_BT: Tensor
    truncated_B: Tensor

    @property
    def times(self) -> int:
        """T, the width of every response-aligned tensor of this rollout."""
        return int(self.sampler_logp_BT.shape[1])


@dataclass(frozen=True)
class Scores:
    """What the models say of a rollout, identical on every rank, float32.

    behaviour_logp_BT: policy that generated (training forward, at temperature).
    entropy_BT: entropy of that policy in nats.
    reference_logp_BT: frozen SFT policy.
    values_BT: critic's value of the state before response token t; 0 without a critic.
    reward_B: raw reward of the whole response, in reward-model units.
    group_probs_BM: p_phi(g|x,y) of the classifier, rows sum to 1; [B, 1] of ones without a classifier.
    """

    behaviour_logp_BT: Tensor
    entropy_BT: Tensor
    reference_logp_BT: Tensor
    values_BT: Tensor
    reward_B: Tensor
    group_probs_BM: Tensor


@dataclass(frozen=True)
class Experience:
    """Rollout + scores after shaping: what the updates train on, identical on every rank, float32.

    group_probs_BM: the group probabilities that the policy side uses: the classifier's, their hard assignment, or what
        takes their place (`algorithms.group_source`); the classifier itself is trained with those of the scores.
    advantage_BT: what multiplies the ratio (whitened GAE; group-DRO's weights included). return_BT: targets of the
        critic.
    kl_B: sum over the response of the KL estimate to the reference, unweighted.
    kl_weight_B: eta_i, the weight of each sequence's KL (adaptive: kl_coef * p_i,high).
    signal_B: S_i at the behaviour policy, the classifier's signal (`algorithms.signal`).
    signal_BT: X_it of S_i = agg_t log pi X_it, where the signal has that form; None: S_i is a value.
    """

    rollout: Rollout
    scores: Scores
    group_probs_BM: Tensor
    advantage_BT: Tensor
    return_BT: Tensor
    kl_B: Tensor
    kl_weight_B: Tensor
    signal_B: Tensor
    signal_BT: Tensor | None = None
