"""The inputs, true results and floors of the ops that benchmarks/kernels/kernels.py measures."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.measure import Case, Tensors
from benchmarks.kernels.objectives import (
    DIFFERENTIABLE,
    OBJECTIVE,
    SHAPING,
    joint_rivals,
    objective_rivals,
    shaping_rivals,
)
from benchmarks.kernels.rivals import token_rivals
from gipo_mc.ops import reference

#: Rows of which the gradient of the logits is compared with float64; the rows do not depend on one another.
_COMPARED = 64
_CHUNK = 256  # rows that the float64 reference takes at a time


def token_case(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> Case:
    """Op A: [N, V] logits to log-prob and entropy, with a gradient for both."""
    source, targets = _logits(rows, vocabulary, dtype, device)
    upstream = _upstream(1, {"logp": (rows,), "entropy": (rows,)}, device)
    upstream["logp_sum"] = torch.tensor(-1.0, device=device)

    @cache
    def truth(names: frozenset[str]) -> Tensors:
        some = slice(0, _COMPARED)
        logits = source[some].double().requires_grad_()
        logp, entropy = reference.token_statistics(logits, targets[some])
        of_logp = -torch.ones_like(logp) if "logp_sum" in names else upstream["logp"][some].double()
        of_entropy = upstream["entropy"][some].double() * ("entropy" in names)
        (gradient,) = torch.autograd.grad([logp, entropy], logits, [of_logp, of_entropy])
        return {"logp": logp.detach(), "entropy": entropy.detach(), "d logits": gradient}

    read = source.nbytes
    return Case(
        "token_statistics",
        dtype,
        {"N": rows, "V": vocabulary},
        device,
        _anew(source, {"targets": targets}),
        ("logits",),
        upstream,
        truth,
        (read, 2 * read),
        token_rivals(dtype, device),
        ("queued",) if device.type == "cuda" else ("wall",),
    )


def objective_case(batch: int, time: int, groups: int, device: torch.device, ragged: bool = False) -> Case:
    """Op B: float32 log-probs, as op A gives them. ragged: sequences of 1 to T tokens, as a rollout has them, whose
    padding ours does not read; else all are of full length."""
    given = _objective_inputs(batch, time, groups, device)
    if ragged:
        generator = torch.Generator().manual_seed(4)
        given["length_B"] = torch.randint(1, time + 1, (batch,), generator=generator).to(device)
    upstream = _objective_upstream(batch, groups, device)
    leaves = ("logp_BT", "group_probs_BM")

    def inputs() -> Tensors:
        return {name: x.detach().requires_grad_() if name in leaves else x for name, x in given.items()}

    @cache
    def truth(names: frozenset[str]) -> Tensors:
        exact = {name: x.double().requires_grad_() if name in leaves else _wide(x) for name, x in given.items()}
        found = reference.group_objective(**exact, **OBJECTIVE)._asdict()
        wanted = [name for name in DIFFERENTIABLE if name in names]
        gradients = torch.autograd.grad(
            [found[name] for name in wanted],
            [exact[name] for name in leaves],
            [upstream[name].double() for name in wanted],
        )
        return {name: x.detach() for name, x in found.items()} | {
            f"d {name}": g for name, g in zip(leaves, gradients, strict=True)
        }

    tokens = int(given["length_B"].sum())
    return Case(
        "group_objective",
        torch.float32,
        {"B": batch, "T": time, "M": groups} | ({"tokens": tokens} if ragged else {}),
        device,
        inputs,
        leaves,
        upstream,
        truth,
        (16 * tokens, 16 * tokens + 4 * batch * time),
        objective_rivals(),
        ("graph", "wall") if device.type == "cuda" else ("wall", "again"),
    )


def shaping_case(batch: int, time: int, device: torch.device) -> Case:
    """Op C: float32 log-probs and values of sequences of full length; no gradient."""
    rest = _objective_inputs(batch, time, 1, device)
    given = {
        "behaviour_logp_BT": rest["behaviour_logp_BT"],
        "reference_logp_BT": rest["reference_logp_BT"],
        "values_BT": rest["advantage_BT"],
        "reward_B": rest["behaviour_signal_B"],
        "length_B": rest["length_B"],
        "kl_weight_B": rest["kl_weight_B"],
    }

    @cache
    def truth(_: frozenset[str]) -> Tensors:
        return reference.shape_and_gae(**{name: _wide(x) for name, x in given.items()}, **SHAPING)._asdict()

    tokens = batch * time
    return Case(
        "shape_and_gae",
        torch.float32,
        {"B": batch, "T": time},
        device,
        lambda: given,
        (),
        {},
        truth,
        (24 * tokens, 0),
        shaping_rivals(),
        ("graph", "wall") if device.type == "cuda" else ("wall", "again"),
    )


def joint_case(batch: int, time: int, vocabulary: int, groups: int, dtype: torch.dtype, device: torch.device) -> Case:
    """Ops A and B from the logits of B * T tokens, one advantage a sequence (Liger's GRPO knows no other)."""
    source, targets = _logits(batch * time, vocabulary, dtype, device)
    given = _objective_inputs(batch, time, groups, device)
    given["advantage_BT"] = given["advantage_BT"][:, :1].expand(batch, time).contiguous()
    logp = torch.cat([x.logp_N for x in _exact_tokens(source, targets)]).view(batch, time)
    shift = given.pop("logp_BT")
    for name in ("behaviour_logp_BT", "reference_logp_BT"):
        given[name] = (logp + given[name] - shift).float()
    upstream = _objective_upstream(batch, groups, device) | _upstream(3, {"entropy_B": (batch,)}, device)
    upstream["loss_BT"] = upstream["kl_B"][:, None].expand(batch, time - 1).contiguous()

    @cache
    def truth(names: frozenset[str]) -> Tensors:
        exact = {name: _wide(x) for name, x in given.items()}
        entropy = torch.cat([x.entropy_N for x in _exact_tokens(source, targets)]).view(batch, time)
        ups = {name: x.double() for name, x in upstream.items() if name in names}
        if "loss_BT" in names:
            exact["length_B"] = exact["length_B"] - 1
            ups = {"surrogate_B": -upstream["kl_B"].double(), "kl_B": upstream["kl_B"].double()}
        leaf, probs = logp.detach().requires_grad_(), exact["group_probs_BM"].detach().requires_grad_()
        found = reference.group_objective(**{**exact, "logp_BT": leaf, "group_probs_BM": probs}, **OBJECTIVE)._asdict()
        wanted = [name for name in DIFFERENTIABLE if name in ups]
        of_logp, of_probs = torch.autograd.grad(
            [found[name] for name in wanted], [leaf, probs], [ups[name] for name in wanted], allow_unused=True
        )
        of_entropy = ups["entropy_B"][:, None].expand(batch, time) if "entropy_B" in names else torch.zeros_like(logp)
        some = slice(0, _COMPARED)
        logits = source[some].double().requires_grad_()
        token = reference.token_statistics(logits, targets[some])
        gradients = [of_logp.flatten()[some], of_entropy.flatten()[some]]
        (gradient,) = torch.autograd.grad(list(token), logits, gradients)
        values = {name: x.detach() for name, x in found.items()} | {"entropy_B": entropy.sum(1)}
        return {"d logits": gradient} | ({} if "loss_BT" in names else {**values, "d group_probs_BM": of_probs})

    tokens = 12 * batch * time  # behaviour and reference log-prob and advantage, each way
    return Case(
        "token_objective",
        dtype,
        {"B": batch, "T": time, "V": vocabulary, "M": groups},
        device,
        _anew(source, {"targets": targets, **given}, leaf="group_probs_BM"),
        ("logits", "group_probs_BM"),
        upstream,
        truth,
        (source.nbytes + tokens, 2 * source.nbytes + tokens),
        joint_rivals(device),
        ("queued",) if device.type == "cuda" else ("wall",),
    )


def _anew(source: Tensor, rest: Tensors, leaf: str = "") -> Any:
    """Makes inputs whose logits hold the numbers of `source`, in the same memory every time, and are not a leaf; the
    input `leaf` of the rest is one that requires gradient."""
    buffer = torch.empty_like(source)
    parameter = torch.zeros((), requires_grad=True)

    def inputs() -> Tensors:
        buffer.copy_(source)
        leaves = {leaf: rest[leaf].detach().requires_grad_()} if leaf else {}
        return {"logits": _Computed.apply(parameter, buffer), **rest, **leaves}

    return inputs


class _Computed(torch.autograd.Function):
    """Logits as a model computes them, without the model: not a leaf, and not a view either, because autograd forgets
    the origin of a view that an implementation writes over."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, buffer: Tensor) -> Tensor:
        return buffer.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        raise AssertionError("only the gradient of the logits is asked for")


def _logits(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    source = torch.empty(rows, vocabulary, dtype=dtype, device=device)
    for chunk in source.split(_CHUNK):
        chunk.copy_(3 * torch.randn(chunk.shape, generator=generator, device=device))
    return source, torch.randint(0, vocabulary, (rows,), generator=generator, device=device)


def _exact_tokens(source: Tensor, targets: Tensor) -> list[reference.TokenStatistics]:
    pairs = zip(source.split(_CHUNK), targets.split(_CHUNK), strict=True)
    return [reference.token_statistics(logits.double(), ids) for logits, ids in pairs]


def _objective_inputs(batch: int, time: int, groups: int, device: torch.device) -> Tensors:
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    logp = normal(batch, time) * 0.5 - 2
    return {
        "logp_BT": logp,
        "behaviour_logp_BT": logp + 0.1 * normal(batch, time),
        "reference_logp_BT": logp + 0.1 * normal(batch, time),
        "advantage_BT": normal(batch, time),
        "length_B": torch.full((batch,), time, device=device),
        "group_probs_BM": torch.softmax(normal(batch, groups), 1),
        "behaviour_signal_B": normal(batch),
        "kl_weight_B": torch.rand(batch, generator=generator, device=device),
    }


def _objective_upstream(batch: int, groups: int, device: torch.device) -> Tensors:
    shapes = {"signal_B": (batch,), "surrogate_B": (batch,), "kl_B": (batch,)}
    return _upstream(2, {**shapes, "mass_M": (groups,), "weighted_M": (groups,), "weighted_kl": ()}, device)


def _upstream(seed: int, shapes: dict[str, tuple[int, ...]], device: torch.device) -> Tensors:
    generator = torch.Generator(device).manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, device=device) for name, shape in shapes.items()}


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
