"""Every op forward and backward on small odd shapes: what the CUDA sanitizers watch, and a test of equal bits.

    python benchmarks/kernels/small_cases.py [--device cuda] [--repeats N]

Shapes are not multiples of anything: one column, rows that begin off a 16-byte boundary, ignored and padded targets,
empty sequences. Inputs are made on the CPU, so that on a GPU little but the kernels themselves runs. Exit code 1 where
a repeat gives other bits, or where the CUDA kernels are further from the CPU kernels than rounding explains.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

import torch
from torch import Tensor

from gipo_mc import ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COLUMNS = (1, 7, 257, 1037)
SEQUENCES = ((3, 37, 2), (5, 300, 3), (1, 1, 1))
HEADS = ((1, 1, 12), (2, 1, 64), (1, 2, 80), (2, 5, 128), (1, 1, 256))  # key heads, query heads of each, width
Results = list[Tensor]


def jobs(dtypes: list[torch.dtype]) -> Iterator[tuple[str, torch.dtype, Callable[[torch.device], Results]]]:
    """(name, type of the gradient, job on a device -> its results on the CPU)."""
    for dtype in dtypes:
        for columns in COLUMNS:
            for inplace in (False, True):
                name = f"token_statistics {dtype} [5, {columns}]{' in place' if inplace else ''}"
                yield name, dtype, lambda d, c=columns, t=dtype, i=inplace: tokens(c, t, i, d)
        for columns in COLUMNS:
            yield f"token_objective {dtype} [9, {columns}]", dtype, lambda d, c=columns, t=dtype: joint(c, t, d)
        for columns in COLUMNS:
            yield f"sample {dtype} [6, {columns}]", dtype, lambda d, c=columns, t=dtype: sampling(c, t, d)
        for shape in SEQUENCES:
            yield f"group_objective {dtype} {shape}", dtype, lambda d, s=shape, t=dtype: objective(*s, t, d)
            yield f"shape_and_gae {dtype} {shape}", dtype, lambda d, s=shape, t=dtype: shaping(*s[:2], t, d)
        for heads in HEADS:
            yield f"paged_attention {dtype} {heads}", dtype, lambda d, h=heads, t=dtype: cached(*h, t, d)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(columns: int, dtype: torch.dtype, inplace: bool, device: torch.device) -> Results:
    """Op A on rows of an odd stride; two of the columns, where there are that many, are padding."""
    rows, stride = 5, columns + 3
    storage = (3 * normal(1 + rows * stride)).to(dtype).to(device)
    leaf = storage[1:].as_strided((rows, columns), (stride, 1), 1).requires_grad_()
    real = max(1, columns - 2)
    targets = torch.tensor([0, real - 1, -100, real // 2, real // 3]).to(device)
    # A copy of the same stride: in place is for computed logits only.
    logits = _Strided.apply(leaf) if inplace else leaf
    logp, entropy = ops.token_statistics(logits, targets, vocab_size=real, temperature=0.7, inplace_backward=inplace)
    upstream = normal(2, rows, seed=1).to(device)
    (gradient,) = torch.autograd.grad([logp, entropy], logits, [upstream[0], upstream[1]])
    return [x.detach().cpu() for x in (logp, entropy, gradient)]


def joint(columns: int, dtype: torch.dtype, device: torch.device) -> Results:
    """Ops A and B joined: sequences of 4, 0 and 5 tokens, rows of an odd stride, in place."""
    length, rows, stride, (batch, time, groups) = [4, 0, 5], 9, columns + 3, (3, 6, 2)
    storage = normal(1 + rows * stride).to(dtype).to(device)
    logits = _Strided.apply(storage[1:].as_strided((rows, columns), (stride, 1), 1).requires_grad_())
    logp = normal(batch, time) * 0.5 - math.log(columns)
    given = [logp, logp + 0.3 * normal(batch, time, seed=1), normal(batch, time, seed=2)]
    vectors = normal(2, batch, seed=4).to(device)
    probs = torch.softmax(normal(batch, groups), 1).to(device).requires_grad_()
    found = ops.token_objective(
        *(logits, (torch.arange(rows) * 5 % columns).to(device), *(x.to(device) for x in given)),
        *(torch.tensor(length).to(device), probs, vectors[0], vectors[1].abs()),
        clip=0.2,
        kl_estimator="k3",
        signal_form="ratio",
        inplace_backward=True,
    )
    values = [*found.objective, found.entropy_B]
    outputs = [x for x in values if x.requires_grad]
    upstream = [normal(x.numel(), seed=5).reshape(x.shape).to(device) for x in outputs]
    gradients = torch.autograd.grad(outputs, [probs, logits], upstream)
    return [x.detach().cpu() for x in (*values, *gradients)]


class _Strided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, leaf: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        copy = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
        return copy.copy_(leaf)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return gradient


def objective(batch: int, time: int, groups: int, dtype: torch.dtype, device: torch.device) -> Results:
    """Op B with lengths from 0 to T."""
    logp = normal(batch, time) * 0.5 - 2
    given = [logp, *(logp + 0.3 * normal(batch, time, seed=seed) for seed in (1, 2)), normal(batch, time, seed=3)]
    current, behaviour, against, advantage = (x.to(dtype).to(device) for x in given)
    current, probs = current.requires_grad_(), torch.softmax(normal(batch, groups), 1).to(device).requires_grad_()
    length = (torch.arange(batch) * 7 % (time + 1)).to(device)
    vectors = normal(2, batch, seed=4).to(device)
    found = ops.group_objective(
        *(current, behaviour, against, advantage, length, probs, vectors[0], vectors[1].abs()),
        clip=0.2,
        kl_estimator="k3",
        signal_form="ratio",
    )
    outputs = [x for x in found if x.requires_grad]
    upstream = [normal(x.numel(), seed=5).reshape(x.shape).to(device) for x in outputs]
    gradients = torch.autograd.grad(outputs, [current, probs], upstream)
    return [x.detach().cpu() for x in (*found, gradients[1], gradients[0])]


def shaping(batch: int, time: int, dtype: torch.dtype, device: torch.device) -> Results:
    """Op C with lengths from 0 to T."""
    logp = normal(batch, time) - 2
    given = (logp, logp + 0.3 * normal(batch, time, seed=1), normal(batch, time, seed=2))
    behaviour, against, values = (x.to(dtype).to(device) for x in given)
    length = (time - torch.arange(batch) * 5 % (time + 1)).to(device)
    vectors = normal(2, batch, seed=3).abs().to(device)
    found = ops.shape_and_gae(
        *(behaviour, against, values, vectors[0], length, vectors[1]), gamma=0.99, lam=0.95, kl_estimator="k3"
    )
    return [x.cpu() for x in found]


def cached(groups: int, queries: int, width: int, dtype: torch.dtype, device: torch.device) -> Results:
    """Tokens into the pages of two slots, and the queries of the last ones over 150 and 17 positions."""
    length, pages = (150, 17), 12
    slot = torch.cat([torch.full((count,), k) for k, count in enumerate(length)])
    position = torch.cat([torch.arange(count) for count in length])
    table = torch.full((2, 10), -1, dtype=torch.int32)
    table[0], table[1, :2] = torch.arange(11, 1, -1), torch.tensor([0, 1])
    columns = groups * (queries + 2) * width
    qkv = normal(len(slot), columns + 3).to(dtype).to(device)[:, :columns]
    angle = torch.outer(torch.arange(150.0), 0.5 ** torch.arange(width / 2))
    keys, values = (torch.full((pages, groups, 16, width), torch.nan, dtype=dtype, device=device) for _ in range(2))
    given = [x.to(device) for x in (angle.cos(), angle.sin(), slot, position, table)]
    query = ops.rotate_and_append(qkv, *given, keys, values)
    last = torch.tensor([149, 166, 0], device=device)
    lengths = torch.tensor([*length, 0], device=device)
    slots = torch.tensor([0, 1, 0], device=device)
    out = ops.paged_attention(query[last], keys, values, given[4], slots, lengths, width**-0.5)
    return [x.cpu().nan_to_num(9.0) for x in (query, keys, values, out)]


def sampling(columns: int, dtype: torch.dtype, device: torch.device) -> Results:
    """Op D in every way to choose a token, on rows of an odd stride with padding, of which one is broken."""
    rows, stride, real = 6, columns + 3, max(1, columns - 2)
    storage = (3 * normal(1 + rows * stride)).to(dtype)
    logits = storage[1:].as_strided((rows, columns), (stride, 1), 1)
    logits[4], logits[5, real - 1] = 0.5, torch.inf
    logits, uniform = logits.to(device), torch.linspace(0.01, 0.99, rows, dtype=torch.float64).to(device)
    found: Results = []
    for choice in ({}, {"greedy": True}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 200, "top_p": 0.5}):
        drawn = ops.sample(logits, uniform, vocab_size=real, known_ids=max(1, real - 1), temperature=0.9, **choice)
        found += [x.cpu() for x in drawn]
    return [x.nan_to_num(9.0) for x in found]


def close(found: Results, expected: Results, dtype: torch.dtype) -> bool:
    """Within rounding: 1e-5 of the values in float32, one unit in the last place for gradients of half precision."""
    for a, b in zip(found, expected, strict=True):
        loose = torch.finfo(dtype).eps if a.dtype == dtype and dtype != torch.float32 else 1e-5
        if not torch.allclose(a.double(), b.double(), rtol=loose, atol=1e-5):
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=1, help="times that every job must give the same bits again [1]")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    options = parser.parse_args()
    device, wrong, count = torch.device(options.device), [], 0
    for name, dtype, job in jobs([DTYPES[name] for name in options.dtypes]):
        first = job(device)
        count += 1
        if device.type == "cuda" and not close(first, job(torch.device("cpu")), dtype):
            wrong.append(f"{name}: {device} and cpu differ")
        for _ in range(options.repeats):
            if not all(torch.equal(a, b) for a, b in zip(job(device), first, strict=True)):
                wrong.append(f"{name}: a repeat gave other bits")
                break
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    print(f"{count} cases on {device}, {options.repeats} repeats each, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
