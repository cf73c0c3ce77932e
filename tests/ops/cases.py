"""Inputs and comparisons that the tests of the ops share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALF)
ESTIMATORS = ("k1", "k2", "k3")
SIGNAL_FORMS = ("ratio", "log_prob", "log_prob_mean")


def close(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """float32 tolerance of the kernels against a float64 reference."""
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=1e-5, atol=1e-6, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def ulp(dtype: torch.dtype, at: Tensor) -> Tensor:
    """Distance of neighbouring numbers of a half-precision dtype around each value of `at`."""
    info = torch.finfo(dtype)
    return info.eps * torch.exp2(torch.floor(torch.log2(at.abs().double().clamp(min=info.tiny))))


def within_ulp(actual: Tensor, expected: Tensor, slack: float = 0.0) -> None:
    """`actual` equals the correctly rounded `expected` (float64) to one unit in the last place of its dtype."""
    rounded = expected.to(actual.dtype)
    distance = (actual.double() - rounded.double()).abs()
    wrong = distance > ulp(actual.dtype, rounded) + slack
    assert not wrong.any(), f"{int(wrong.sum())} values are off by more than one ulp, at most {distance[wrong].max()}"


def objective_case(
    batch: int, time: int, groups: int, dtype: torch.dtype = torch.float32, seed: int = 0, lengths: Any = None
) -> dict[str, Tensor]:
    """Inputs of group_objective by argument name; the padding holds NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    length = (
        torch.as_tensor(lengths) if lengths is not None else torch.randint(0, time + 1, (batch,), generator=generator)
    )
    padding = torch.arange(time) >= length[:, None]
    logp = normal(batch, time) * 0.5 - 2
    tokens = {
        "logp_BT": logp,
        "behaviour_logp_BT": logp + normal(batch, time) * 0.3,
        "reference_logp_BT": logp + normal(batch, time) * 0.3,
        "advantage_BT": normal(batch, time),
    }
    return {
        **{name: x.masked_fill(padding, torch.nan).to(dtype) for name, x in tokens.items()},
        "length_B": length,
        "group_probs_BM": torch.softmax(normal(batch, groups), 1).to(wide),
        "behaviour_signal_B": normal(batch).to(wide),
        "kl_weight_B": torch.rand(batch, generator=generator, dtype=torch.float64).to(wide),
    }


def widened(case: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs in float64, for the reference."""
    return {name: x.double() if x.is_floating_point() else x for name, x in case.items()}


def joined_case(
    lengths: list[int],
    columns: int,
    groups: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    vocabulary: int | None = None,
    slack: int = 1,
) -> dict[str, Tensor]:
    """Inputs of token_objective by argument name; `slack` columns of padding at least, which holds NaN."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    time = max(lengths, default=0) + slack
    generator = torch.Generator().manual_seed(seed)
    rows, vocabulary = sum(lengths), vocabulary or columns
    logits = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 2).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    case = objective_case(len(lengths), time, groups, wide, seed, torch.tensor(lengths, dtype=torch.int64))
    # Ratios around 1, as in training.
    logp = torch.log_softmax(logits[:, :vocabulary].double(), 1).gather(1, targets[:, None]).squeeze(1)
    valid = torch.arange(time) < case["length_B"][:, None]
    for name, scale in (("behaviour_logp_BT", 0.3), ("reference_logp_BT", 0.5)):
        noise = torch.randn(rows, generator=generator, dtype=torch.float64) * scale
        case[name] = case[name].masked_scatter(valid, (logp + noise).to(wide))
    del case["logp_BT"]
    return {"logits_NV": logits, "targets_N": targets, **case}


def shaping_case(batch: int, time: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of shape_and_gae by argument name; the padding holds NaN."""
    case = objective_case(batch, time, 1, dtype, seed)
    return {
        "behaviour_logp_BT": case["behaviour_logp_BT"],
        "reference_logp_BT": case["reference_logp_BT"],
        "values_BT": case["advantage_BT"],
        "reward_B": case["behaviour_signal_B"],
        "length_B": case["length_B"],
        "kl_weight_B": case["kl_weight_B"],
    }


class Cache(NamedTuple):
    key_pool: Tensor
    value_pool: Tensor
    page_table_SP: Tensor


def cache_case(lengths: Any, groups: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Cache:
    """A cache that holds `lengths` positions of slots, in pages of scrambled order; everything else is NaN."""
    generator = torch.Generator().manual_seed(seed)
    pages = [-(-length // 16) for length in lengths]
    order = torch.randperm(sum(pages) + 2, generator=generator)
    table = torch.full((len(pages), max(pages, default=0)), -1, dtype=torch.int32)
    pools = torch.full((2, len(order), groups, 16, width), torch.nan, dtype=torch.float64)
    first = 0
    for slot, (count, length) in enumerate(zip(pages, lengths, strict=True)):
        table[slot, :count] = order[first : first + count].int()
        filled = torch.randn(2, groups, count * 16, width, generator=generator, dtype=torch.float64)
        filled[:, :, length:] = torch.nan
        pools[:, table[slot, :count].long()] = filled.unflatten(2, (count, 16)).transpose(1, 2)
        first += count
    return Cache(*pools.to(dtype), table)


def token_case(
    dtype: torch.dtype, groups: int, queries: int, width: int, positions: Any = (0, 5, -1, 33, 16, 47), seed: int = 0
) -> dict[str, Tensor]:
    """Inputs of rotate_and_append by argument name: tokens of two slots in turn, or of one where they are many."""
    generator = torch.Generator().manual_seed(seed)
    slots, rows = 2 if len(positions) < 10 else 1, len(positions)
    pages = max(positions) // 16 + 1
    order = torch.randperm(slots * pages + 1, generator=generator)[: slots * pages]
    numbers = torch.randn(rows, groups * (queries + 2) * width, generator=generator, dtype=torch.float64)
    pools = torch.randn(2, slots * pages + 1, groups, 16, width, generator=generator, dtype=torch.float64)
    angle = torch.outer(torch.arange(max(positions) + 1).float(), 1e4 ** -(torch.arange(0, width, 2) / width))
    return {
        "qkv_NC": numbers.to(dtype),
        "cos_PR": angle.cos(),
        "sin_PR": angle.sin(),
        "slot_N": torch.arange(rows) % slots,
        "position_N": torch.tensor(positions),
        "page_table_SP": order.view(slots, pages).int(),
        "key_pool": pools[0].to(dtype),
        "value_pool": pools[1].to(dtype),
    }
