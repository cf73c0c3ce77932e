"""Op D: from a row of logits and one uniform number to a token and its log-probability.

Temperature, top-k, top-p, then the inverse of the cumulative distribution. A row's token is a function of its logits
and its uniform alone. That is what makes a response independent of its batch neighbours: the uniforms come from
counter-based streams (`gipo_mc.parallel.streams`), keyed by the prompt and not by its place in a batch. Candidates are
laid out in vocabulary order, never in sorted order, so that two logits that swap ranks by a rounding error do not swap
tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gipo_mc.ops import checks, native, reference

_OP = "sample"


def _fake_sample(logits_BV: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = logits_BV.shape[0]
    return logits_BV.new_empty(rows, dtype=torch.int64), logits_BV.new_empty(rows, dtype=torch.float64)


@native.op("sample", _fake_sample)
def _sample(
    logits_BV: Tensor,
    uniform_B: Tensor | None,
    vocab_size: int,
    candidates: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """Token and log-prob of each row, of which only the first `candidates` ids are drawn; no uniforms: greedy."""
    uniform_B = None if uniform_B is None else uniform_B.contiguous()
    token_B, logp_B = _fake_sample(logits_BV)
    room = None  # of the segments of the rows, whose parts the kernels on CUDA pass on
    if logits_BV.device.type == "cuda":
        segments = native.module().sample_segments(vocab_size, candidates)
        room = logits_BV.new_empty((logits_BV.shape[0], segments, 2), dtype=torch.float32)
    native.call(
        _OP,
        logits_BV.device,
        *(native.address(logits_BV), native.code(logits_BV), logits_BV.shape[0], vocab_size, logits_BV.stride(0)),
        *(candidates, native.address(uniform_B), temperature, top_k, top_p),
        *map(native.address, (room, token_B, logp_B)),
    )
    return token_B, logp_B


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
    """One token for each row of full-vocabulary logits, and its log-probability. No gradient.

    logits_BV: [B, V], float32, bfloat16, float16 (or float64, CPU); any row stride, columns contiguous. Columns from
        `vocab_size` on are padding: never read, never drawn, and no probability.
    uniform_B: float64 [B] in [0, 1), on the device of the logits; not read, and may be None, when greedy.
    known_ids: ids from this one on are not drawn, as if top-k had left them out (0: all are).
    temperature: > 0, divides the logits. greedy: the largest logit, the lowest id among equals.
    top_k: the k largest logits stay, and those equal to the k-th (0: all).
    top_p: of these the smallest set stays whose probability reaches top_p, equal logits in the order of their ids; the
        largest always stays (1: all).

    Returns token_B int64 [B] and logp_B float64 [B]: log-softmax of logits / temperature at the token, over vocab_size
    ids, before top-k and top-p. A row that cannot be drawn from (a NaN, +inf, or no finite logit among the candidates)
    has token -1 and log-prob NaN: the caller reports it.
    Raises TypeError or ValueError for wrong dtypes, shapes, layouts, numbers.
    """
    checks.sampling(_OP, logits_BV, uniform_B, vocab_size, known_ids, temperature, top_k, top_p, greedy)
    logits_BV = logits_BV.detach()
    if native.use_reference():
        return reference.sample(
            logits_BV,
            uniform_B,
            vocab_size=vocab_size,
            known_ids=known_ids,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            greedy=greedy,
        )
    candidates = min(known_ids or vocab_size, vocab_size)
    return _sample(logits_BV, None if greedy else uniform_B, vocab_size, candidates, temperature, top_k, top_p)
