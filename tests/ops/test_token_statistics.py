"""Op A against its float64 reference. Most cases were bugs of a vocabulary kernel somewhere; see the test names."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.common.timing import peak_extra_bytes
from gipo_mc.ops import reference, token_statistics
from gipo_mc.ops.token_statistics import token_gradient, token_gradient_, token_merge, token_partials, token_results
from tests.ops.cases import DTYPES, HALF, close, within_ulp


def compare(logits: Tensor, targets: Tensor, **options: object) -> Tensor:
    """Native against float64 reference, outputs and gradient under upstream gradients that are not 1."""
    native = logits.detach().requires_grad_()
    exact = logits.detach().double().requires_grad_()
    got = token_statistics(native, targets, **options)  # type: ignore[arg-type]
    want = reference.token_statistics(exact, targets, **options)  # type: ignore[arg-type]
    upstream = torch.linspace(-1.5, 2.0, 2 * len(targets), dtype=torch.float64).reshape(2, -1)
    close(got.logp_N, want.logp_N, "logp")
    close(got.entropy_N, want.entropy_N, "entropy")
    torch.autograd.backward(list(got), list(upstream.to(got.logp_N.dtype)))
    torch.autograd.backward(list(want), list(upstream))
    assert native.grad is not None and exact.grad is not None and native.grad.dtype == logits.dtype
    if logits.dtype in HALF:
        within_ulp(native.grad, exact.grad, slack=1e-6)
    else:
        close(native.grad, exact.grad, "gradient")
    return native.grad


def draw(rows: int, columns: int, dtype: torch.dtype = torch.float32, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    return (torch.randn(rows, columns) * scale).to(dtype), torch.randint(0, columns, (rows,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 2, 7, 8, 15, 16, 17, 255, 256, 257, 1023, 1025, 4099])
def test_vocabulary_sizes_around_every_vector_and_block_width(columns: int, dtype: torch.dtype) -> None:
    compare(*draw(5, columns, dtype), temperature=0.7)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 6),
    columns=st.integers(1, 80),
    extra=st.integers(0, 5),
    offset=st.integers(0, 7),
    padding=st.integers(0, 20),
    start=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    seed=st.integers(0, 1000),
)
def test_odd_sizes_strides_and_alignments(
    rows: int,
    columns: int,
    extra: int,
    offset: int,
    padding: int,
    start: int,
    dtype: torch.dtype,
    temperature: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    storage = (torch.randn(offset + rows * (columns + extra) + 1, generator=generator) * 5).to(dtype)
    logits = storage[offset:].as_strided((rows, columns), (columns + extra, 1))
    vocabulary = max(1, columns - padding)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets[::3] = -100
    gradient = compare(logits, targets, vocab_size=vocabulary, temperature=temperature)
    assert (gradient[:, vocabulary:] == 0).all() and (gradient[::3] == 0).all()
    if start:  # a single shard that begins later: the same numbers, other names
        shifted = torch.where(targets >= 0, targets + start, targets)
        first = token_statistics(logits, targets, vocab_size=vocabulary)
        moved = token_statistics(logits, shifted, vocab_size=vocabulary + start, vocab_start=start)
        assert torch.equal(first.logp_N, moved.logp_N) and torch.equal(first.entropy_N, moved.entropy_N)


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_at_most_that_of_eager(dtype: torch.dtype) -> None:
    logits, targets = draw(16, 5000, dtype)
    exact = reference.token_statistics(logits.double(), targets)
    native = token_statistics(logits, targets)
    eager = torch.log_softmax(logits, 1)  # in its own dtype
    eager_logp = eager.gather(1, targets[:, None]).squeeze(1)
    eager_entropy = -(eager.exp() * eager).sum(1)
    for got, other, want in zip(native, (eager_logp, eager_entropy), exact, strict=True):
        assert (got - want).abs().max() <= (other - want).abs().max() + 1e-6


@pytest.mark.parametrize("shift", [-1e4, 1e4, -3e38])
def test_large_logits_of_one_sign(shift: float) -> None:
    """A maximum that starts at 0 is wrong for negative logits; m + ln s - w / s loses the entropy of large ones."""
    logits, targets = draw(4, 67)
    compare(logits + shift, targets)


def test_logits_of_both_signs_far_apart() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [3e38, -3e38, 0.0]])
    compare(logits, torch.tensor([0, 1, 0]))


def test_minus_infinity_logits_with_entropy() -> None:
    logits, targets = draw(4, 40)
    logits[:, 5:30] = -torch.inf
    compare(logits, targets.clamp(max=4))
    token = token_statistics(logits, torch.full((4,), 7))
    assert (token.logp_N == -torch.inf).all() and token.entropy_N.isfinite().all()


def test_a_nan_logit_shows_in_its_row_only() -> None:
    logits, targets = draw(3, 33)
    logits[1, 20] = torch.nan
    token = token_statistics(logits, targets)
    assert token.logp_N.isnan().tolist() == token.entropy_N.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_give_zeros_whatever_they_hold(dtype: torch.dtype) -> None:
    logits, targets = draw(4, 19, dtype)
    logits[1], logits[3] = torch.nan, torch.inf
    targets[1] = targets[3] = -100
    gradient = compare(logits, targets)
    assert (gradient[1] == 0).all() and (gradient[3] == 0).all()


def test_padded_columns_count_as_minus_infinity_even_when_they_hold_nan() -> None:
    logits, targets = draw(3, 24)
    logits[:, 20:] = torch.nan
    gradient = compare(logits, targets.clamp(max=19), vocab_size=20)
    assert (gradient[:, 20:] == 0).all()


def test_target_outside_the_vocabulary() -> None:
    """The public op refuses it; the kernels, which cannot look on CUDA, stay in their buffers and write every row."""
    logits, targets = draw(3, 24)
    for wrong in (20, 23, 24, 10**12, -1, -(10**12)):
        targets[1] = wrong
        with pytest.raises(ValueError, match=r"targets_N\[1\] = .* outside the vocabulary of 20 ids"):
            token_statistics(logits, targets, vocab_size=20)
        partials = token_partials(logits, targets, 0, 20, 1.0)
        logp, entropy, statistics = token_merge(partials[None], targets, 1.0)
        assert logp[1] == -torch.inf and entropy.isfinite().all() and logp[::2].isfinite().all()
        whole = token_results(logits, targets, 0, 20, 1.0)
        assert all(torch.equal(x, y) for x, y in zip(whole, (logp, entropy, statistics), strict=True))
        ones = torch.ones(3)
        gradient = token_gradient(logits, targets, entropy, statistics, ones, ones, 0, 20, 20, 1.0)
        expected = logits.double().requires_grad_()
        reference.token_statistics(expected, targets.clamp(0, 19), vocab_size=20).entropy_N.sum().backward()
        close(gradient[1], expected.grad[1], "only the entropy has a gradient there")


def test_transposed_columns_are_refused_and_expanded_rows_read_right() -> None:
    logits, targets = draw(6, 6)
    with pytest.raises(ValueError, match="not contiguous"):
        token_statistics(logits.t(), targets)
    with pytest.raises(ValueError, match="not contiguous"):
        token_statistics(logits[:, :1].expand(6, 6), targets)
    compare(logits[:1].expand(6, 6), targets)
    compare(logits[::2], targets[::2])
    token = token_statistics(logits, targets.repeat_interleave(2)[::2])
    assert torch.equal(token.logp_N, token_statistics(logits, targets).logp_N)


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_for_only_one_output(output: int) -> None:
    logits, targets = draw(4, 50)
    native, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    upstream = torch.tensor([0.5, -2.0, 0.0, 3.0])
    token_statistics(native, targets)[output].backward(upstream)
    reference.token_statistics(exact, targets)[output].backward(upstream.double())
    close(native.grad, exact.grad)
    assert (native.grad[2] == 0).all()


def test_upstream_gradients_that_are_expanded() -> None:
    logits, targets = draw(4, 50)
    native, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    token_statistics(native, targets).logp_N.sum().backward()
    reference.token_statistics(exact, targets).logp_N.sum().backward()
    close(native.grad, exact.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inplace_backward_gives_the_same_gradient_in_the_memory_of_the_logits(dtype: torch.dtype) -> None:
    leaf, targets = draw(7, 45, dtype)
    gradients = []
    for inplace in (False, True):
        source = leaf.clone().requires_grad_()
        logits = source * 1.0
        token = token_statistics(logits, targets, vocab_size=45, inplace_backward=inplace)
        seen: list[Tensor] = []
        logits.register_hook(seen.append)
        (token.logp_N * 2 - token.entropy_N).sum().backward()
        assert (seen[0].data_ptr() == logits.data_ptr()) is inplace
        gradients.append(source.grad)
    assert torch.equal(*gradients)


def test_inplace_backward_with_a_second_consumer_fails_loudly() -> None:
    """The consumer's saved logits were overwritten; autograd must notice, not compute with them."""
    source, targets = draw(3, 9)
    logits = source.requires_grad_() * 1.0
    squares = logits.square().sum()
    token = token_statistics(logits, targets, inplace_backward=True)
    token.logp_N.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        token.entropy_N.sum().backward()


def test_inplace_backward_is_refused_where_it_would_destroy_something() -> None:
    logits, targets = draw(3, 9)
    with pytest.raises(ValueError, match="leaf"):
        token_statistics(logits.requires_grad_(), targets, inplace_backward=True)
    with pytest.raises(ValueError, match="overlap"):
        token_statistics((logits * 1.0)[:1].expand(3, 9), targets, inplace_backward=True)


def test_offsets_beyond_32_bits() -> None:
    """Two rows 2^31 + 8 elements apart: 4.3 GB of address space, of which two pages are touched."""
    stride = 2**31 + 8
    far = torch.empty(stride + 64, dtype=torch.bfloat16).as_strided((2, 24), (stride, 1))
    near, targets = draw(2, 24, torch.bfloat16)
    far.copy_(near)
    there, here = token_statistics(far, targets), token_statistics(near, targets)
    assert torch.equal(there.logp_N, here.logp_N) and torch.equal(there.entropy_N, here.entropy_N)
    _, *kept = token_results(near, targets, 0, 24, 1.0)
    arguments = (targets, *kept, torch.ones(2), torch.ones(2), 0, 24, 24, 1.0)
    expected = token_gradient(near, *arguments)
    assert torch.equal(token_gradient(far, *arguments), expected)
    token_gradient_(far, *arguments)
    assert torch.equal(far, expected)


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_batch_and_one_token(rows: int) -> None:
    logits, targets = draw(rows, 12)
    assert compare(logits, targets).shape == (rows, 12)


def test_all_rows_ignored() -> None:
    logits, _ = draw(3, 12)
    assert (compare(logits, torch.full((3,), -100)) == 0).all()


def test_one_column_and_a_point_mass_have_no_entropy() -> None:
    token = token_statistics(torch.tensor([[0.0, -200.0, -1e30]]), torch.tensor([0]))
    assert token.logp_N.item() == token.entropy_N.item() == 0.0
    uniform = token_statistics(torch.zeros(1, 1000), torch.tensor([3]))
    assert math.isclose(uniform.entropy_N.item(), math.log(1000), rel_tol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_run_or_the_number_of_threads(dtype: torch.dtype) -> None:
    logits, targets = draw(37, 4099, dtype)  # enough for several threads
    runs = []
    for threads in (1, 1, 2, 5):
        torch.set_num_threads(threads)
        leaf = logits.clone().requires_grad_()
        token = token_statistics(leaf, targets)
        (token.logp_N + token.entropy_N).sum().backward()
        runs.append((*token, leaf.grad))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_gradcheck() -> None:
    logits = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 8, -100, 3])
    assert torch.autograd.gradcheck(
        lambda x: tuple(token_statistics(x, targets, vocab_size=9, temperature=0.8)), (logits,)
    )


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    logits, targets = draw(3, 10, dtype)
    operators, targets = torch.ops.gipo_mc, targets.clamp(max=8)
    partials = token_partials(logits, targets, 0, 9, 0.9)
    torch.library.opcheck(operators.token_partials.default, (logits, targets, 0, 9, 0.9))
    torch.library.opcheck(operators.token_merge.default, (partials[None], targets, 0.9))
    torch.library.opcheck(operators.token_statistics.default, (logits, targets, 0, 9, 0.9))
    _, *kept = token_merge(partials[None], targets, 0.9)
    for of_entropy in (torch.ones_like(kept[0]), None):
        arguments = (*kept, torch.ones_like(kept[0]), of_entropy, 0, 9, 9, 0.9)
        torch.library.opcheck(operators.token_gradient.default, (logits, targets, *arguments))
        torch.library.opcheck(operators.token_gradient_.default, (logits.clone(), targets, *arguments))


def test_compiled_as_a_whole() -> None:
    logits, targets = draw(5, 33)

    def loss(x: Tensor) -> Tensor:
        token = token_statistics(x * 2, targets)
        return (token.logp_N * 3 - token.entropy_N).sum()

    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    loss(leaves[0]).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(leaves[1]).backward()
    assert leaves[0].grad is not None and torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_beside_the_logits_is_16_bytes_a_token(dtype: torch.dtype) -> None:
    rows = 4096
    logits = draw(rows, 33, dtype)[0].requires_grad_() * 1.0
    targets, upstream = torch.zeros(rows, dtype=torch.int64), torch.randn(2, rows)

    def step() -> None:
        token = token_statistics(logits, targets, inplace_backward=True)
        torch.autograd.grad(list(token), logits, list(upstream.unbind()))

    assert peak_extra_bytes(step, logits.device) <= 16 * rows + 1024


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits_NV": torch.zeros(3, 4, dtype=torch.int32)}, TypeError, "dtype torch.int32"),
        ({"logits_NV": [[0.0]]}, TypeError, "must be a tensor, not list"),
        ({"logits_NV": torch.zeros(3, 4).to_sparse()}, TypeError, "dense"),
        ({"logits_NV": torch.zeros(12)}, ValueError, r"shape \[12\]"),
        ({"logits_NV": torch.zeros(3, 0)}, ValueError, "at least one column"),
        ({"logits_NV": torch.zeros(2, 4)}, ValueError, r"shape \[3\], but \[2\] is needed"),
        ({"targets_N": torch.zeros(3, dtype=torch.int32)}, TypeError, "torch.int64 is needed"),
        ({"targets_N": torch.zeros(3, dtype=torch.int64, device="meta")}, ValueError, "on meta"),
        ({"temperature": 0.0}, ValueError, "temperature=0.0"),
        ({"temperature": math.nan}, ValueError, "temperature=nan"),
        ({"vocab_size": 0}, ValueError, "vocab_size=0"),
        ({"vocab_start": -4}, ValueError, "vocab_start=-4"),
    ],
)
def test_wrong_arguments_are_python_errors(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"logits_NV": torch.zeros(3, 4), "targets_N": torch.zeros(3, dtype=torch.int64), **change}
    with pytest.raises(error, match=message):
        token_statistics(arguments.pop("logits_NV"), arguments.pop("targets_N"), **arguments)
