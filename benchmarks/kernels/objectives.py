"""What ops B (group objective), C (shaping and GAE) and the join of A and B are compared with.

The eager versions are written as one writes them by hand: masks multiplied in, no care for NaN in the padding, and all
the outputs that the losses and the metrics of an iteration need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import rivals
from benchmarks.kernels.measure import NotRun, Rival, Tensors
from gipo_mc import ops
from gipo_mc.ops import reference

OBJECTIVE: dict[str, Any] = {"clip": 0.2, "kl_estimator": "k3", "signal_form": "ratio"}
SHAPING: dict[str, Any] = {"gamma": 0.99, "lam": 0.95, "kl_estimator": "k3"}
#: Outputs of op B that carry gradient, by their names in GroupObjective.
DIFFERENTIABLE = ("signal_B", "surrogate_B", "kl_B", "mass_M", "weighted_M", "weighted_kl")
_FIXED = (
    "behaviour_logp_BT",
    "reference_logp_BT",
    "advantage_BT",
    "length_B",
    "group_probs_BM",
    "behaviour_signal_B",
    "kl_weight_B",
)


def objective_rivals() -> list[Rival | NotRun]:
    """Every implementation of op B. Inputs: the arguments of gipo_mc.ops.group_objective by name."""
    eager = Rival("eager torch", eager_objective, "masks multiplied in")
    return [
        Rival("gipo_mc", lambda given: ops.group_objective(**given, **OBJECTIVE)._asdict(), ours=True),
        eager,
        Rival(
            "reference",
            lambda given: reference.group_objective(**given, **OBJECTIVE)._asdict(),
            "gipo_mc.ops.reference, what the kernels are held to",
        ),
        rivals.compiled(eager),
    ]


def eager_objective(given: Tensors) -> Tensors:
    logp, behaviour, advantage = given["logp_BT"], given["behaviour_logp_BT"], given["advantage_BT"]
    length, probs = given["length_B"], given["group_probs_BM"]
    mask = torch.arange(logp.shape[1], device=logp.device) < length[:, None]
    log_ratio = logp - behaviour
    ratio = log_ratio.exp()
    free, held = ratio * advantage, ratio.clamp(1 - OBJECTIVE["clip"], 1 + OBJECTIVE["clip"]) * advantage
    against = given["reference_logp_BT"] - logp
    kl = ((against.exp() - 1 - against) * mask).sum(1)
    signal = given["behaviour_signal_B"] + ((ratio - 1) * advantage * mask).sum(1) / length.clamp(min=1)
    with torch.no_grad():
        clipped = ((held < free) & mask).sum(1).float()
        largest = (ratio * mask).amax(1)
        behaviour_kl = ((ratio - 1 - log_ratio) * mask).sum(1)
    return {
        "signal_B": signal,
        "surrogate_B": (torch.minimum(free, held) * mask).sum(1),
        "kl_B": kl,
        "clipped_B": clipped,
        "ratio_max_B": largest,
        "behaviour_kl_B": behaviour_kl,
        "mass_M": probs.sum(0),
        "weighted_M": (probs * signal[:, None]).sum(0),
        "weighted_kl": (given["kl_weight_B"] * kl).sum(),
    }


def shaping_rivals() -> list[Rival | NotRun]:
    """Every implementation of op C. Inputs: the arguments of gipo_mc.ops.shape_and_gae by name."""
    product = Rival("eager torch, matrix product", _eager_shaping(product=True), "GAE as a triangular matrix product")
    return [
        Rival("gipo_mc", lambda given: ops.shape_and_gae(**given, **SHAPING)._asdict(), ours=True),
        Rival("eager torch", _eager_shaping(product=False), "GAE as a loop over time, as it is usually written"),
        product,
        Rival(
            "reference",
            lambda given: reference.shape_and_gae(**given, **SHAPING)._asdict(),
            "gipo_mc.ops.reference, what the kernels are held to",
        ),
        rivals.compiled(product),
        NotRun("torch.compile of eager torch", "it unrolls the loop over time, which takes minutes to compile"),
    ]


def _eager_shaping(product: bool) -> Any:
    def forward(given: Tensors) -> Tensors:
        values, length = given["values_BT"], given["length_B"]
        position = torch.arange(values.shape[1], device=values.device)
        mask = position < length[:, None]
        log_ratio = given["reference_logp_BT"] - given["behaviour_logp_BT"]
        kl = (log_ratio.exp() - 1 - log_ratio) * mask
        last = position == length[:, None] - 1
        reward = last * given["reward_B"][:, None] - given["kl_weight_B"][:, None] * kl
        values = values * mask
        following = torch.cat((values[:, 1:], values.new_zeros(len(values), 1)), 1)
        delta = reward + SHAPING["gamma"] * following - values
        decay = SHAPING["gamma"] * SHAPING["lam"]
        advantage = _by_product(delta, decay) if product else _by_loop(delta, decay)
        advantage = advantage * mask
        return {
            "reward_BT": reward,
            "advantage_BT": advantage,
            "return_BT": advantage + values,
            "kl_B": kl.sum(1),
            "count": length.sum(),
            "sum": advantage.sum(),
            "sum_sq": advantage.square().sum(),
        }

    return forward


def _by_loop(delta: Tensor, decay: float) -> Tensor:
    later, found = torch.zeros_like(delta[:, 0]), []
    for t in range(delta.shape[1] - 1, -1, -1):
        later = delta[:, t] + decay * later
        found.append(later)
    return torch.stack(found[::-1], 1)


def _by_product(delta: Tensor, decay: float) -> Tensor:
    position = torch.arange(delta.shape[1], device=delta.device)
    ahead = position[:, None] - position
    return delta @ torch.where(ahead >= 0, decay ** ahead.clamp(min=0), 0.0).to(delta.dtype)


def joint_rivals(device: torch.device) -> list[Rival | NotRun]:
    """From logits to the objective. Inputs: logits, targets and what op B takes beside its log-probs; the tokens are
    those of one sequence after the other, all of full length."""
    eager = Rival("eager torch", _joined(rivals.eager_token(upcast=True)), "eager A, then eager B")
    both = Rival("gipo_mc, A then B", _joined(rivals.ours(inplace=True), native=True), "in place", ours=True)
    joined = Rival(
        "gipo_mc, joined", _joint(ops.token_objective, inplace_backward=True), "token_objective, in place", ours=True
    )
    exact = Rival("reference", _joint(reference.token_objective), "gipo_mc.ops.reference")
    return [joined, both, eager, exact, rivals.compiled(eager), *_liger_grpo(device)]


def _joined(tokens: Rival, native: bool = False) -> Any:
    def forward(given: Tensors) -> Tensors:
        token = tokens.forward(given)
        logp = token["logp"].view_as(given["advantage_BT"])
        rest = {"logp_BT": logp, **{name: given[name] for name in _FIXED}}
        found = ops.group_objective(**rest, **OBJECTIVE)._asdict() if native else eager_objective(rest)
        return {**found, "entropy_B": token["entropy"].view_as(logp).sum(1)}

    return forward


def _joint(function: Any, **options: Any) -> Any:
    def forward(given: Tensors) -> Tensors:
        rest = {name: given[name] for name in _FIXED}
        found = function(given["logits"], given["targets"], **rest, **OBJECTIVE, **options)
        return {**found.objective._asdict(), "entropy_B": found.entropy_B}

    return forward


def _liger_grpo(device: torch.device) -> list[Rival | NotRun]:
    """Liger's GRPO loss from logits: PPO's surrogate and k3 KL a token, which it can give without adding them up."""
    name = "Liger GRPO" + (" (Triton interpreter)" if rivals.interpreting() else "")
    found = rivals.triton_module("liger_kernel.transformers.grpo_loss", device)
    if isinstance(found, str):
        return [NotRun(name, found)]

    def forward(given: Tensors) -> Tensors:
        batch, time = given["advantage_BT"].shape
        # It takes one position more than it scores: the last token of each sequence is left out.
        per_token, _, _ = found.triton_grpo_loss(  # type: ignore[attr-defined]
            given["logits"].view(batch, time, -1),
            given["behaviour_logp_BT"][:, :-1].contiguous(),
            given["reference_logp_BT"][:, :-1].contiguous(),
            given["targets"].view(batch, time)[:, :-1].contiguous(),
            given["advantage_BT"][:, 0].contiguous(),
            temperature=1.0,
            beta=1.0,
            eps_low=OBJECTIVE["clip"],
            eps_high=OBJECTIVE["clip"],
            inplace=True,
            reduce=False,
        )
        return {"loss_BT": per_token}

    note = "no entropy, no group objective; one advantage a sequence; a token a sequence less"
    return [Rival(name, forward, note)]
