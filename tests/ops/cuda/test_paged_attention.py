"""The ops over a paged cache on a real device: against the CPU kernels, float64, graphs, and ids that do not exist."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gipo_mc.ops import paged_attention, reference_attention, rotate_and_append
from tests.ops.cases import DTYPES, HALF, Cache, cache_case, token_case, within_ulp
from tests.ops.cuda.cases import DEVICE, same_bits

pytestmark = pytest.mark.gpu
LENGTHS = (0, 1, 15, 16, 17, 129, 2000)


def agree(got: Tensor, want: Tensor, slack: float) -> None:
    if got.dtype in HALF:
        within_ulp(got.cpu(), want.double(), slack=slack)
    else:
        torch.testing.assert_close(got.cpu().double(), want.double(), rtol=1e-5, atol=slack, equal_nan=True)


def on_device(cache: Cache) -> Cache:
    return Cache(*(x.to(DEVICE) for x in cache))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 12, 64, 80, 128, 256])
@pytest.mark.parametrize(("groups", "queries"), [(2, 1), (2, 2), (1, 4), (1, 7)])
def test_attention(groups: int, queries: int, width: int, dtype: torch.dtype) -> None:
    cache, rows = cache_case(LENGTHS, groups, width, dtype), len(LENGTHS)
    query = torch.randn(rows, groups * queries, width).to(dtype)
    slot, length = torch.arange(rows), torch.tensor(LENGTHS)
    scale = width**-0.5
    device = (query.to(DEVICE), *on_device(cache), slot.to(DEVICE), length.to(DEVICE), scale)
    out = paged_attention(*device)
    agree(out, paged_attention(query, *cache, slot, length, scale), 1e-5)
    exact = (query.double(), cache.key_pool.double(), cache.value_pool.double(), cache.page_table_SP, slot, length)
    agree(out, reference_attention.paged_attention(*exact, scale), 1e-5)
    assert (out[0] == 0).all()
    assert all(same_bits([paged_attention(*device)], [out]) for _ in range(20))
    alone = paged_attention(device[0][4:5], *device[1:4], device[4][4:5], device[5][4:5], scale)
    assert torch.equal(alone, out[4:5]), "a row does not depend on its neighbours"


@pytest.mark.parametrize("offset", [1, 4])
def test_attention_off_a_16_byte_boundary(offset: int) -> None:
    cache = cache_case((40,), 1, 16, torch.bfloat16)
    query = torch.randn(1, 2, 16).bfloat16()
    shifted = []
    for x in (query, cache.key_pool, cache.value_pool):
        storage = torch.empty(x.numel() + offset, dtype=x.dtype, device=DEVICE)
        shifted.append(storage[offset:].view(x.shape).copy_(x))
    rest = (torch.tensor([0]), torch.tensor([40]))
    out = paged_attention(*shifted, cache.page_table_SP.to(DEVICE), *(x.to(DEVICE) for x in rest), 0.25)
    agree(out, paged_attention(query, *cache, *rest, 0.25), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 12, 64, 80, 128])
@pytest.mark.parametrize("extra", [0, 1])
def test_rotation_and_append(extra: int, width: int, dtype: torch.dtype) -> None:
    case = token_case(dtype, 2, 3, width)
    wide = torch.zeros(len(case["slot_N"]), case["qkv_NC"].shape[1] + extra, dtype=dtype)
    case["qkv_NC"] = wide[:, : case["qkv_NC"].shape[1]].copy_(case["qkv_NC"])
    device = {name: x.to(DEVICE) for name, x in case.items()}
    device["qkv_NC"] = wide.to(DEVICE)[:, : case["qkv_NC"].shape[1]]
    query = rotate_and_append(**device)
    agree(query, rotate_and_append(**case), 1e-6)
    for name in ("key_pool", "value_pool"):
        agree(device[name], case[name], 1e-6)


def test_ids_that_do_not_exist_touch_no_memory_and_show() -> None:
    cache = on_device(cache_case((20, 20, 20, 20, 5), 1, 8))
    pages, room = len(cache.key_pool), cache.page_table_SP.shape[1] * 16
    cache.page_table_SP[2, 1] = pages
    slot, length = torch.tensor([99, 1, 2, 3, 4]), torch.tensor([20, room + 1, 20, -1, 5])
    out = paged_attention(torch.randn(5, 1, 8, device=DEVICE), *cache, slot.to(DEVICE), length.to(DEVICE), 1.0)
    assert out.isnan().all(1).tolist() == [True, True, True, True, False]
    case = {name: x.to(DEVICE) for name, x in token_case(torch.float32, 1, 1, 8).items()}
    before = case["key_pool"].clone()
    case["slot_N"][:] = torch.tensor([-1, 99, 0, 0, 0, 0])
    case["position_N"][:] = torch.tensor([0, 0, -1, -5, 10**6, -(10**12)])
    assert (rotate_and_append(**case) == 0).all() and torch.equal(case["key_pool"], before)


def test_a_decode_step_is_captured_and_replayed() -> None:
    """Positions and tables change between replays; the grid depends on shapes only."""
    case = {name: x.to(DEVICE) for name, x in token_case(torch.bfloat16, 2, 2, 64).items()}
    length = torch.zeros_like(case["position_N"])

    def step() -> Tensor:
        query = rotate_and_append(**case)
        pools = (case["key_pool"], case["value_pool"], case["page_table_SP"])
        torch.add(case["position_N"], 1, out=length)
        return paged_attention(query, *pools, case["slot_N"], length, 0.125)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for positions in ([3, 0, 7, -1, 40, 21], [4, 1, 8, 0, 41, 22]):
        case["position_N"].copy_(torch.tensor(positions))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, step())


def test_offsets_beyond_32_bits() -> None:
    pages, groups, width = 66_000, 16, 128  # 2^31 elements end in page 65,536
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of free device memory")
    keys, values = (torch.zeros(pages, groups, 16, width, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    few = cache_case((30,), groups, width, torch.bfloat16)
    table = torch.tensor([[65_999, 65_537]], dtype=torch.int32)
    for big, small in ((keys, few.key_pool), (values, few.value_pool)):
        big[table[0].long()] = small[few.page_table_SP[0].long()].to(DEVICE)
    query, rest = torch.randn(1, groups, width).bfloat16(), (torch.tensor([0]), torch.tensor([30]))
    out = paged_attention(query.to(DEVICE), keys, values, *(x.to(DEVICE) for x in (table, *rest)), 0.1)
    small = paged_attention(query.to(DEVICE), *on_device(few), *(x.to(DEVICE) for x in rest), 0.1)
    assert torch.equal(out, small)
