"""Op D (sampling): its case, and what it is compared with.

The rivals draw with numbers of their own, so that their tokens cannot be compared; the reference's can.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import rivals
from benchmarks.kernels.measure import Case, NotRun, Rival, Tensors
from gipo_mc import ops
from gipo_mc.ops import reference

#: How the token is chosen: top_k, top_p.
CHOICES = ((0, 1.0), (0, 0.9), (50, 1.0))


def sampling_case(rows: int, vocabulary: int, top_k: int, top_p: float, device: torch.device) -> Case:
    """Op D: float32 [B, V] logits and a uniform number for each row, to token and log-prob; no gradient."""
    generator = torch.Generator(device).manual_seed(0)
    given = {
        "logits": 3 * torch.randn(rows, vocabulary, generator=generator, device=device),
        "uniform": torch.rand(rows, generator=generator, device=device, dtype=torch.float64),
    }
    choice = {"vocab_size": vocabulary, "top_k": top_k, "top_p": top_p}

    @cache
    def truth(_: frozenset[str]) -> Tensors:
        return _of(reference.sample(given["logits"], given["uniform"], **choice))

    return Case(
        "sample",
        torch.float32,
        {"B": rows, "V": vocabulary} | ({"top-k": top_k} if top_k else {}) | _percent(top_p),
        device,
        lambda: given,
        (),
        {},
        truth,
        (given["logits"].nbytes + 24 * rows, 0),
        _rivals(choice),
        ("graph", "wall") if device.type == "cuda" else ("wall",),
    )


def _percent(top_p: float) -> dict[str, int]:
    return {"top-p %": round(100 * top_p)} if top_p < 1 else {}


def _of(drawn: tuple[Tensor, Tensor]) -> Tensors:
    return {"token": drawn[0], "logp": drawn[1]}


def _rivals(choice: dict[str, Any]) -> list[Rival | NotRun]:
    top_k, top_p = choice["top_k"], choice["top_p"]

    def eager(given: Tensors) -> Tensors:
        logits = given["logits"]
        if top_k:
            logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
        if top_p < 1:
            ordered, ids = logits.sort(descending=True)
            probs = ordered.softmax(-1)
            ordered = ordered.masked_fill(probs.cumsum(-1) - probs >= top_p, -torch.inf)
            logits = torch.empty_like(logits).scatter(-1, ids, ordered)
        return _random(logits, given["logits"])

    found = Rival("eager torch", eager, "topk, sort and cumsum where asked, softmax, multinomial; not compared")
    return [
        Rival("gipo_mc", lambda given: _of(ops.sample(given["logits"], given["uniform"], **choice)), ours=True),
        found,
        Rival(
            "reference",
            lambda given: _of(reference.sample(given["logits"], given["uniform"], **choice)),
            "gipo_mc.ops.reference in float64, what the kernels are held to",
        ),
        _transformers(top_k, top_p),
        rivals.compiled(found),
    ]


def _random(logits: Tensor, whole: Tensor) -> Tensors:
    """A token from filtered logits, and its log-prob before they were."""
    token = torch.multinomial(logits.softmax(-1), 1)
    return {"drawn": token.squeeze(1), "its logp": whole.log_softmax(-1).gather(1, token).squeeze(1)}


def _transformers(top_k: int, top_p: float) -> Rival | NotRun:
    """The logits warpers that transformers' generate applies, then its multinomial."""
    library = rivals.module("transformers")
    if isinstance(library, str):
        return NotRun("transformers", library)
    warpers = [library.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [library.TopPLogitsWarper(top_p)] if top_p < 1 else []

    def forward(given: Tensors) -> Tensors:
        logits = given["logits"]
        for warper in warpers:
            logits = warper(None, logits)
        return _random(logits, given["logits"])

    return Rival("transformers", forward, "its logits warpers, softmax, multinomial; not compared")
