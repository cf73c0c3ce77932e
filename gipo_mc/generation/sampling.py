"""From one row of logits and one uniform number to one token: temperature, top-k, top-p, inverse CDF.

Everything here works row by row and in float64, and a row's token is a function of its logits and its uniform alone.
That is what makes a response independent of its batch neighbours: the uniforms come from counter-based streams
(`gipo_mc.parallel.streams`), keyed by the prompt and not by its place in a batch. Candidates are laid out in
vocabulary order, never in sorted order, so that two logits that swap ranks by a rounding error do not swap tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def filter_logits(logits_BV: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits [B, V] with everything but the candidates set to -inf; same dtype, a new tensor where it changes.

    top_k: the k largest logits stay (and those equal to the k-th); 0: all.
    top_p: of these, the smallest set stays whose probability reaches top_p (Holtzman et al. 2020): a token stays if
        the tokens above it hold less than top_p, equal logits ordered by vocabulary id; 1: all.
    The largest logit always stays. Order and meaning are those of transformers' logits warpers.
    """
    if 0 < top_k < logits_BV.shape[-1]:
        smallest_kept_B1 = logits_BV.topk(top_k, dim=-1).values[..., -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_kept_B1, -torch.inf)
    if top_p < 1.0:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
        probs_BV = sorted_BV.double().softmax(dim=-1)
        above_BV = probs_BV.cumsum(dim=-1) - probs_BV
        dropped_BV = above_BV >= top_p
        dropped_BV[..., 0] = False
        logits_BV = logits_BV.masked_fill(dropped_BV.scatter(-1, order_BV, dropped_BV), -torch.inf)
    return logits_BV


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """int64 [B]: the first token, in vocabulary order, whose cumulative probability exceeds the row's uniform.

    logits_BV: [B, V], -inf for tokens that must not be drawn (at least one per row is finite).
    uniform_B: float64 [B] in [0, 1).
    """
    logits_BV = logits_BV.double()
    weights_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).exp()
    cumulative_BV = weights_BV.cumsum(dim=-1)
    total_B = cumulative_BV[:, -1]
    # u * total may round up to the total, beyond which no token lies.
    target_B = torch.minimum(uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    return torch.searchsorted(cumulative_BV, target_B[:, None], right=True).squeeze(1)


def sample(
    logits_BV: Tensor,
    uniform_B: Tensor | None,
    *,
    vocab_size: int,
    known_ids: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token for each row of full-vocabulary logits, and its log-probability.

    logits_BV: [B, V], any float dtype; columns from `vocab_size` on are padding: never drawn, and no probability.
    known_ids: ids from this one on are not drawn, as if top-k had left them out (0: all are).
    uniform_B: float64 [B] in [0, 1); not read when greedy.
    temperature: > 0, divides the logits. greedy: the largest logit, the lowest id among equals.

    Returns token_B int64 [B] and logp_B float64 [B]: log-softmax of logits / temperature at the token, before top-k
    and top-p. A row without a finite log-sum-exp (NaN, +inf) has token -1 and log-prob NaN: the caller reports it.
    """
    logits_BV = logits_BV[:, :vocab_size].double() / temperature
    normaliser_B = logits_BV.logsumexp(dim=-1)
    candidates_BV = logits_BV[:, : known_ids or None]
    if greedy:
        token_B = candidates_BV.argmax(dim=-1)
    else:
        assert uniform_B is not None, "sampling needs a uniform number for each row"
        token_B = draw(filter_logits(candidates_BV, top_k=top_k, top_p=top_p), uniform_B)
    broken_B = ~normaliser_B.isfinite()
    token_B = token_B.clamp(max=candidates_BV.shape[-1] - 1)  # a NaN row finds no token
    logp_B = logits_BV.gather(-1, token_B[:, None]).squeeze(1) - normaliser_B
    return token_B.masked_fill(broken_B, -1), logp_B.masked_fill(broken_B, torch.nan)
