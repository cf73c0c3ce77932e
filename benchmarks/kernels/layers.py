"""The ops of a layer for benchmarks/kernels/kernels.py, forward and backward in float32 on the CPU, beside torch's own
kernels: flash attention, rms_norm and silu, which every other device and type uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.measure import Case, NotRun, Rival, Tensors
from gipo_mc.ops import causal_attention, gated_silu, norm_of_sum
from gipo_mc.ops.layers import reference

#: Of attention: L, B, heads, key heads, D, from the built-in task to a small Llama. Of the rows: N, H and F.
ATTENTION = ((17, 64, 4, 4, 16), (64, 16, 4, 4, 16), (256, 4, 8, 4, 64), (512, 2, 8, 4, 64), (1024, 1, 32, 8, 64))
ROWS = ((1088, 64, 176), (1024, 1024, 2816))
OPS = ("causal_attention", "norm_of_sum", "gated_silu")
_EPSILON = 1e-5


def planned(ops: tuple[str, ...], quick: bool) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(name, maker) of each case of these ops. quick: the smallest sizes alone."""
    if "causal_attention" in ops:
        for sizes in ATTENTION[:1] if quick else ATTENTION:
            yield f"causal_attention {sizes}", lambda s=sizes: attention_case(*s)
    for rows, hidden, wide in ROWS[:1] if quick else ROWS:
        if "norm_of_sum" in ops:
            yield f"norm_of_sum {rows} {hidden}", lambda n=rows, h=hidden: norm_case(n, h)
        if "gated_silu" in ops:
            yield f"gated_silu {rows} {wide}", lambda n=rows, f=wide: gated_case(n, f)


def attention_case(length: int, batch: int, heads: int, groups: int, width: int) -> Case:
    """From the output of the QKV projection to what is seen, rotation included."""
    angle_PR = torch.outer(torch.arange(float(length)), 10000.0 ** -torch.linspace(0, 1, width // 2))
    tables = {"cos_PR": angle_PR.cos(), "sin_PR": angle_PR.sin()}
    given = {"qkv_LBC": _normal(1, length, batch, (heads + 2 * groups) * width)}

    def of(op: Callable[..., Tensor]) -> Callable[[Tensors], Tensors]:
        return lambda x: {
            "seen": op(x["qkv_LBC"], *(table.to(x["qkv_LBC"].dtype) for table in tables.values()), groups, width**-0.5)
        }

    shape = {"L": length, "B": batch, "H": heads, "G": groups, "D": width}
    rival = Rival("eager torch", of(reference.causal_attention), "rotation, permutations, flash attention")
    read, seen = given["qkv_LBC"].nbytes, length * batch * heads * width * 4
    upstream = {"seen": _normal(2, length, batch, heads * width)}
    floor = (read + seen, 2 * read + seen)
    return _case("causal_attention", shape, given, upstream, of(causal_attention), rival, of, floor)


def norm_case(rows: int, columns: int) -> Case:
    """x + other and its RMSNorm, gradients of both."""
    given = {"x": _normal(1, rows, columns), "other": _normal(2, rows, columns), "weight_H": _normal(3, columns)}

    def of(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Tensors], Tensors]:
        return lambda x: dict(zip(("sum", "normed"), op(*x.values(), _EPSILON), strict=True))

    rival = Rival("eager torch", of(reference.norm_of_sum), "x + other, then rms_norm")
    upstream = {"sum": _normal(4, rows, columns), "normed": _normal(5, rows, columns)}
    floor = (4 * given["x"].nbytes, 4 * given["x"].nbytes)
    return _case("norm_of_sum", {"N": rows, "H": columns}, given, upstream, of(norm_of_sum), rival, of, floor)


def gated_case(rows: int, columns: int) -> Case:
    """silu(gate) * up."""
    given = {"both": 2 * _normal(1, rows, 2 * columns)}

    def of(op: Callable[..., Tensor]) -> Callable[[Tensors], Tensors]:
        return lambda x: {"out": op(x["both"])}

    rival = Rival("eager torch", of(reference.gated_silu), "silu, then a product")
    upstream = {"out": _normal(2, rows, columns)}
    size = upstream["out"].nbytes
    return _case(
        "gated_silu", {"N": rows, "F": columns}, given, upstream, of(gated_silu), rival, of, (3 * size, 5 * size)
    )


def _case(
    op: str,
    shape: dict[str, int],
    given: Tensors,
    upstream: Tensors,
    ours: Callable[[Tensors], Tensors],
    eager: Rival,
    of: Callable[..., Callable[[Tensors], Tensors]],
    floor: tuple[int, int],
) -> Case:
    """Ours and eager torch, whose definition in float64 is the truth."""
    definition = of(getattr(reference, op))

    @cache
    def truth(_: frozenset[str]) -> Tensors:
        exact = {name: x.double().requires_grad_() for name, x in given.items()}
        found = definition(exact)
        ups = [upstream[name].double() for name in found]
        gradients = torch.autograd.grad(list(found.values()), list(exact.values()), ups)
        return {name: x.detach() for name, x in found.items()} | {
            f"d {name}": gradient for name, gradient in zip(exact, gradients, strict=True)
        }

    def inputs() -> dict[str, Any]:
        return {name: x.detach().requires_grad_() for name, x in given.items()}

    rivals: list[Rival | NotRun] = [Rival("gipo_mc", ours, ours=True), eager]
    cpu, wanted = torch.device("cpu"), tuple(given)
    return Case(op, torch.float32, shape, cpu, inputs, wanted, upstream, truth, floor, rivals, ("wall", "again"))


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
