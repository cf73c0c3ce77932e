"""The two ops over a paged cache: against float64, over shapes, tables and lengths, and what a row may depend on."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from gipo_mc.ops import native, paged_attention, rotate_and_append
from gipo_mc.ops import reference_attention as reference
from gipo_mc.ops.paged_attention import CHUNK, PAGE, WIDEST_HEAD
from tests.ops.cases import DTYPES, HALF, Cache, cache_case, close, token_case, within_ulp

LENGTHS = (0, 1, 15, 16, 17, 300)
WIDTHS = (8, 12, 64, 80, 128)


class Attention(NamedTuple):
    query_NHD: Tensor
    cache: Cache
    slot_N: Tensor
    length_N: Tensor

    def run(self, rows: Any = slice(None), cache: Cache | None = None) -> Tensor:
        inputs = (self.query_NHD[rows], *(cache or self.cache), self.slot_N[rows], self.length_N[rows])
        return paged_attention(*inputs, self.query_NHD.shape[2] ** -0.5)

    def exact(self) -> Tensor:
        """In float64, of the same numbers."""
        keys, values, table_SP = self.cache
        inputs = (self.query_NHD.double(), keys.double(), values.double(), table_SP, self.slot_N, self.length_N)
        return reference.paged_attention(*inputs, self.query_NHD.shape[2] ** -0.5)


def attention_case(
    dtype: torch.dtype, groups: int, queries: int, width: int, lengths: tuple[int, ...] = LENGTHS, seed: int = 0
) -> Attention:
    """A query for each slot; what is beyond the lengths is NaN."""
    cache = cache_case(lengths, groups, width, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    query = torch.randn(len(lengths), groups * queries, width, generator=generator, dtype=torch.float64) * 1.5
    return Attention(query.to(dtype), cache, torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("groups", "queries"), [(1, 1), (2, 3), (2, 4), (1, 11)])
def test_attention_equals_float64(groups: int, queries: int, width: int, dtype: torch.dtype) -> None:
    case = attention_case(dtype, groups, queries, width)
    out, exact = case.run(), case.exact()
    assert out.dtype == dtype and out.shape == (len(LENGTHS), groups * queries * width)
    assert (out[0] == 0).all()
    if dtype in HALF:
        within_ulp(out, exact, slack=2e-6)
    else:
        close(out, exact)


@pytest.mark.parametrize("width", [256, 2, 20, 24])
def test_attention_of_other_head_sizes(width: int) -> None:
    case = attention_case(torch.float32, 1, 2, width, (5, 129))
    close(case.run(), case.exact())


def test_attention_agrees_with_torch() -> None:
    case = attention_case(torch.float32, 2, 3, 32, (77,))
    keys, values, table_SP = case.cache

    def laid_out(pool: Tensor) -> Tensor:
        return pool[table_SP[0].long()].transpose(0, 1).flatten(1, 2)[None, :, :77]

    query = case.query_NHD.transpose(0, 1)[None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, laid_out(keys), laid_out(values), enable_gqa=True
    )
    close(case.run(), expected.transpose(1, 2).flatten(1))


def test_many_queries_of_one_slot_see_each_its_own_prefix() -> None:
    """A prompt: query t sees positions 0 to t."""
    length = 2 * CHUNK + 3
    cache = cache_case((length,), 2, 16, torch.float32)
    query = torch.randn(length, 4, 16)
    case = Attention(query, cache, torch.zeros(length, dtype=torch.int64), torch.arange(1, length + 1))
    close(case.run(), case.exact())


def test_slots_may_share_pages() -> None:
    """Two samples of a prompt: pages of its own for each only from where they differ."""
    keys, values, _ = cache_case((3 * PAGE, 2 * PAGE), 2, 16, torch.float32)
    table = torch.tensor([[4, 1, 0], [4, 1, 3]], dtype=torch.int32)
    slot, length = torch.tensor([0, 1, 1]), torch.tensor([35, 40, 20])
    case = Attention(torch.randn(3, 2, 16), Cache(keys, values, table), slot, length)
    close(case.run(), case.exact())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_its_own_query_and_positions_only(dtype: torch.dtype) -> None:
    """Not on neighbours, order, threads, pages' numbers, nor on what lies beyond its length: the same bits."""
    lengths = (300, 0, 17, 129, 1000, 16)
    case = attention_case(dtype, 2, 3, 24, lengths)
    whole = case.run()
    assert torch.equal(case.run(), whole)
    for row in range(len(lengths)):
        assert torch.equal(case.run(slice(row, row + 1)), whole[row : row + 1])
    order = torch.tensor([4, 2, 0, 5, 3, 1])
    assert torch.equal(case.run(order), whole[order])
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(case.run(), whole)
        assert torch.equal(case.run(slice(4, 5)), whole[4:5]), "one long row is cut into chunks for the threads"
    torch.set_num_threads(1)
    moved = torch.randperm(len(case.cache.key_pool) + 9)[: len(case.cache.key_pool)]
    keys, values = (torch.full((len(moved) + 9, *x.shape[1:]), 7.0, dtype=dtype) for x in case.cache[:2])
    keys[moved], values[moved] = case.cache.key_pool.nan_to_num(3.0), case.cache.value_pool.nan_to_num(-5.0)
    table = torch.full((len(lengths), 70), -1, dtype=torch.int32)  # wider, and no page where none is needed
    for slot, length in enumerate(lengths):
        pages = -(-length // PAGE)
        table[slot, :pages] = moved[case.cache.page_table_SP[slot, :pages].long()].int()
    assert torch.equal(case.run(cache=Cache(keys, values, table)), whole)


def test_special_scores() -> None:
    """Large scores do not overflow, one that dominates is not lost in its chunk; NaN and Inf stay in their row."""
    case = attention_case(torch.float32, 1, 1, 16, (200, 200, 200, 200))
    case.query_NHD[0] *= 1e4
    case.query_NHD[1] = 0
    close(case.run()[:2], case.exact()[:2])
    keys, values, table_SP = case.cache
    keys[table_SP[2, 3].long(), 0, 5, 2] = torch.nan
    values[table_SP[3, 3].long(), 0, 5, 2] = torch.inf
    out = case.run()
    assert out[2].isnan().all() and out[3].isinf().tolist() == [column == 2 for column in range(16)]
    close(out[:2], case.exact()[:2])


# --------------------------------------------------------------------------------------------- rotation and append
def appended(case: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    case = {name: x.clone() if "pool" in name else x for name, x in case.items()}
    return rotate_and_append(**case), case["key_pool"], case["value_pool"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("groups", "queries"), [(1, 1), (2, 3)])
def test_rotation_and_append_equal_the_reference(groups: int, queries: int, width: int, dtype: torch.dtype) -> None:
    """To the bit: the rotation is rounded as eager torch rounds it. What is not written stays as it was."""
    case = token_case(dtype, groups, queries, width)
    copied = {name: x.clone() if "pool" in name else x for name, x in case.items()}
    expected = reference.rotate_and_append(**copied)
    query, keys, values = appended(case)
    assert query.shape == (len(case["slot_N"]), groups * queries, width) and query.dtype == dtype
    assert torch.equal(query, expected) and (query[case["position_N"] < 0] == 0).all()
    assert torch.equal(keys, copied["key_pool"]) and torch.equal(values, copied["value_pool"])
    written = (keys != case["key_pool"]).any(3).sum(), (values != case["value_pool"]).any(3).sum()
    assert written == (groups * int((case["position_N"] >= 0).sum()),) * 2


@pytest.mark.parametrize("dtype", HALF)
def test_rotation_equals_float64_rounded_once(dtype: torch.dtype) -> None:
    case = token_case(dtype, 2, 2, 64)
    exact = {name: x.double() if x.is_floating_point() else x.clone() for name, x in case.items()}
    query, keys, values = appended(case)
    within_ulp(query, reference.rotate_and_append(**exact), slack=1e-6)
    within_ulp(keys, exact["key_pool"], slack=1e-6)
    within_ulp(values, exact["value_pool"])


def test_rows_of_any_stride() -> None:
    case = token_case(torch.bfloat16, 2, 3, 16)
    wide = torch.full((len(case["qkv_NC"]), case["qkv_NC"].shape[1] + 5), torch.nan, dtype=torch.bfloat16)
    wide[:, 3:-2] = case["qkv_NC"]
    table = torch.full((len(case["page_table_SP"]), 9), -1, dtype=torch.int32)
    table[:, : case["page_table_SP"].shape[1]] = case["page_table_SP"]
    strided = {**case, "qkv_NC": wide[:, 3:-2], "page_table_SP": table[:, : case["page_table_SP"].shape[1]]}
    assert not strided["qkv_NC"].is_contiguous() and not strided["page_table_SP"].is_contiguous()
    for got, expected in zip(appended(strided), appended(case), strict=True):
        assert torch.equal(got, expected)
    attention = attention_case(torch.float32, 2, 2, 16)
    query = attention.query_NHD.repeat(1, 2, 1)[:, ::2]
    repeated = attention._replace(query_NHD=query.contiguous()).run()
    assert torch.equal(attention._replace(query_NHD=query).run(), repeated)


def test_threads_change_no_bit_of_a_prompt() -> None:
    tokens, width = 300, 64
    case = token_case(torch.float32, 4, 4, width, positions=tuple(range(tokens)))
    torch.set_num_threads(1)
    alone = appended(case)
    torch.set_num_threads(4)
    assert all(torch.equal(x, y) for x, y in zip(appended(case), alone, strict=True))


def test_a_written_prompt_is_attended_to() -> None:
    """Both ops in turn, as generation calls them: a prompt at once equals the same prompt token by token."""
    case = token_case(torch.float32, 2, 2, 16, positions=tuple(range(40)))
    query_NHD = rotate_and_append(**case)
    length_N = case["position_N"] + 1
    pools = (case["key_pool"], case["value_pool"], case["page_table_SP"])
    whole = paged_attention(query_NHD, *pools, case["slot_N"], length_N, 0.25)
    again = token_case(torch.float32, 2, 2, 16, positions=tuple(range(40)))
    for t in range(40):
        step = {**again, **{name: again[name][t : t + 1] for name in ("qkv_NC", "slot_N", "position_N")}}
        query_1HD = rotate_and_append(**step)
        pools = (again["key_pool"], again["value_pool"], again["page_table_SP"])
        out = paged_attention(query_1HD, *pools, step["slot_N"], length_N[t : t + 1], 0.25)
        assert torch.equal(out, whole[t : t + 1])


def test_no_rows() -> None:
    case = attention_case(torch.float32, 2, 2, 16)
    assert case.run(slice(0, 0)).shape == (0, 64)
    tokens = token_case(torch.float32, 2, 2, 16)
    empty = {**tokens, **{name: tokens[name][:0] for name in ("qkv_NC", "slot_N", "position_N")}}
    assert rotate_and_append(**empty).shape == (0, 4, 16)


def test_ids_that_do_not_exist_are_refused_on_the_cpu() -> None:
    case = attention_case(torch.float32, 1, 1, 8, (20, 5))
    pages, room = len(case.cache.key_pool), case.cache.page_table_SP.shape[1] * PAGE
    for change, message in (
        ({"slot_N": torch.tensor([0, 2])}, r"paged_attention: slot_N\[1\] = 2 is outside \[0, 2\)"),
        ({"slot_N": torch.tensor([-1, 0])}, r"slot_N\[0\] = -1 is outside"),
        ({"length_N": torch.tensor([room + 1, 5])}, rf"length_N\[0\] = {room + 1} is outside \[0, {room + 1}\)"),
        ({"length_N": torch.tensor([3, -1])}, r"length_N\[1\] = -1 is outside"),
    ):
        with pytest.raises(IndexError, match=message):
            case._replace(**change).run()
    case.cache.page_table_SP[0, 1] = pages
    with pytest.raises(IndexError, match=rf"page_table_SP\[0, 1\] = {pages} is no page of the {pages} in the pools"):
        case.run()
    case._replace(length_N=torch.tensor([16, 5])).run()  # where that page is not needed

    tokens = token_case(torch.float32, 1, 1, 8)
    many = len(tokens["cos_PR"])
    for position, message in (
        (many, rf"position_N\[0\] = {many} is outside \[0, {many}\)"),
        (-2, r"position_N\[0\] = -2"),
    ):
        with pytest.raises(IndexError, match=f"rotate_and_append: {message}"):
            rotate_and_append(
                **{**tokens, "position_N": tokens["position_N"].index_fill(0, torch.tensor([0]), position)}
            )
    with pytest.raises(IndexError, match=r"slot_N\[0\] = 99"):
        rotate_and_append(**{**tokens, "slot_N": tokens["slot_N"].index_fill(0, torch.tensor([0]), 99)})


def test_wrong_shapes_and_dtypes_are_refused_in_words() -> None:
    case = attention_case(torch.float32, 2, 2, 16)
    keys, values, table_SP = case.cache
    arguments = {"query_NHD": case.query_NHD, **case.cache._asdict(), "slot_N": case.slot_N, "length_N": case.length_N}
    for change, error, message in (
        ({"query_NHD": case.query_NHD.double()}, TypeError, "give float32, bfloat16 or float16"),
        ({"query_NHD": case.query_NHD[:, :3]}, ValueError, r"give \[N, a multiple of 2, 16\]"),
        ({"key_pool": keys.half()}, TypeError, "key_pool has dtype torch.float16, but torch.float32"),
        ({"value_pool": values[:-1]}, ValueError, "value_pool has shape"),
        ({"key_pool": keys.transpose(2, 3)}, ValueError, "key_pool has strides .* it must be contiguous"),
        ({"key_pool": keys[:, :, :8]}, ValueError, r"give \[pages, heads, 16, width\]"),
        ({"page_table_SP": table_SP.long()}, TypeError, "page_table_SP has dtype torch.int64, but torch.int32"),
        ({"page_table_SP": table_SP.t()}, ValueError, "a last stride of 1"),
        ({"slot_N": case.slot_N[1:]}, ValueError, "slot_N has shape"),
        ({"length_N": case.length_N.int()}, TypeError, "length_N has dtype torch.int32"),
    ):
        with pytest.raises(error, match=message):
            paged_attention(**{**arguments, **change}, scale=1.0)
    with pytest.raises(ValueError, match=f"at most {WIDEST_HEAD}"):
        paged_attention(**{**arguments, "key_pool": torch.zeros(1, 1, 16, 257)}, scale=1.0)
    with pytest.raises(ValueError, match="scale=nan must be a finite number"):
        paged_attention(**arguments, scale=float("nan"))
    tokens = token_case(torch.float32, 2, 2, 16)
    for change, error, message in (
        ({"qkv_NC": tokens["qkv_NC"][:, :-1]}, ValueError, r"give \[N, 2 \* \(H / 2 \+ 2\) \* 16\]"),
        ({"qkv_NC": tokens["qkv_NC"][:, : 2 * 32]}, ValueError, r"give \[N, 2 \* \(H / 2 \+ 2\) \* 16\]"),
        ({"qkv_NC": tokens["qkv_NC"].t().contiguous().t()}, ValueError, "the last stride 1"),
        ({"cos_PR": tokens["cos_PR"].double()}, TypeError, "cos_PR has dtype torch.float64"),
        ({"sin_PR": tokens["sin_PR"][1:]}, ValueError, "cos_PR has shape .* but sin_PR"),
        ({"position_N": tokens["position_N"][1:]}, ValueError, "position_N has shape"),
    ):
        with pytest.raises(error, match=message):
            rotate_and_append(**{**tokens, **change})


@pytest.mark.filterwarnings("ignore:GIPO_MC_OPS=reference")
def test_the_references_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    case, tokens = attention_case(torch.float32, 2, 2, 16), token_case(torch.float32, 2, 2, 16)
    expected = case.run(), appended(tokens)[0]
    monkeypatch.setenv("GIPO_MC_OPS", "reference")
    monkeypatch.setattr(native, "call", lambda *_: pytest.fail("a kernel was called"))
    close(case.run(), expected[0])
    assert torch.equal(appended(tokens)[0], expected[1])


def test_both_are_well_behaved_torch_ops() -> None:
    case, tokens = attention_case(torch.float32, 2, 2, 16), token_case(torch.float32, 2, 2, 16)
    arguments = (case.query_NHD, *case.cache, case.slot_N, case.length_N, 0.25)
    torch.library.opcheck(torch.ops.gipo_mc.paged_attention, arguments)
    torch.library.opcheck(torch.ops.gipo_mc.rotate_and_append, tuple(tokens.values()))
    before = tokens["key_pool"]._version
    rotate_and_append(**tokens)
    assert tokens["key_pool"]._version > before
