"""Op D, sampling: numbers by hand, the kernel against the float64 reference, against itself in other batches, errors.

A kernel's token may differ from the reference's only where the uniform number lies within 1e-6 of a boundary between
two tokens, or top_p within 1e-6 of a sum of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gipo_mc import ops
from gipo_mc.ops import native, reference
from gipo_mc.ops.reference import filter_logits
from gipo_mc.ops.sampling import sample

Op = Callable[..., tuple[Tensor, Tensor]]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAST = float(np.nextafter(1.0, 0.0))
#: How tokens are chosen, for V ids.
CHOICES: dict[str, Callable[[int], dict[str, Any]]] = {
    "plain": lambda V: {},
    "cold": lambda V: {"temperature": 0.3},
    "hot": lambda V: {"temperature": 5.0},
    "greedy": lambda V: {"greedy": True},
    "top_k": lambda V: {"top_k": 50},
    "top 1": lambda V: {"top_k": 1},
    "half": lambda V: {"top_k": V // 2, "known_ids": max(1, V - 3)},
    "top_p": lambda V: {"top_p": 0.9, "temperature": 0.8},
    "little p": lambda V: {"top_p": 1e-9},
    "nearly all": lambda V: {"top_p": 1 - 1e-9},
    "both": lambda V: {"top_k": 20, "top_p": 0.6, "known_ids": max(1, V - 1)},
}


@pytest.fixture(params=["kernel", "reference"])
def op(request: pytest.FixtureRequest) -> Op:
    return sample if request.param == "kernel" else reference.sample


def random_logits(rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def uniforms(rows: int, seed: int = 1) -> Tensor:
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def near(logits_V: Tensor, uniform: float, token: int, **options: Any) -> bool:
    """Whether the uniform number is within 1e-6 of the interval of a token, for a top_p within 1e-6 of that given."""
    candidates = (logits_V[: options["vocab_size"]].double() / options.get("temperature", 1.0))[None]
    candidates = candidates[:, : options.get("known_ids") or None]
    for shift in (-1e-6, 0.0, 1e-6):
        top_p = min(1.0, options.get("top_p", 1.0) * (1 + shift))
        kept = filter_logits(candidates, top_k=options.get("top_k", 0), top_p=top_p)[0]
        cumulative = kept.softmax(0).cumsum(0)
        before = cumulative[token - 1] if token else 0.0
        if kept[token] > -torch.inf and before - 1e-6 <= uniform <= cumulative[token] + 1e-6:
            return True
    return False


def compare(logits: Tensor, uniform: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The kernel against the reference, row by row."""
    token, logp = sample(logits, uniform, **options)
    wanted, _ = reference.sample(logits, uniform, **options)
    assert token.dtype == torch.int64 and logp.dtype == torch.float64 and token.shape == logp.shape == (len(logits),)
    assert torch.equal(token < 0, wanted < 0) and torch.equal(logp.isnan(), token < 0)
    for row in (token != wanted).nonzero().flatten().tolist():
        assert not options.get("greedy"), f"row {row}: {token[row]}, not {wanted[row]}"
        assert near(logits[row], float(uniform[row]), int(token[row]), **options), f"{token[row]}, not {wanted[row]}"
    drawn = token >= 0
    scaled = logits[drawn, : options["vocab_size"]].double() / options.get("temperature", 1.0)
    exact = scaled.gather(1, token[drawn, None]).squeeze(1) - scaled.logsumexp(1)
    torch.testing.assert_close(logp[drawn], exact, rtol=1e-6, atol=1e-6)
    return token, logp


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab", "rows"), [(1, 16), (7, 64), (64, 64), (101, 64), (8192, 8), (32000, 4), (128256, 2)])
def test_random_rows(vocab: int, rows: int, dtype: torch.dtype, choice: str) -> None:
    logits = random_logits(rows, vocab, seed=vocab).to(dtype)
    compare(logits, uniforms(rows), vocab_size=vocab, **CHOICES[choice](vocab))


def special_rows(vocab: int) -> dict[str, Tensor]:
    base = random_logits(1, vocab, seed=3)[0]
    place = torch.arange(vocab)
    one = torch.full((vocab,), -torch.inf)
    one[vocab // 2] = 3.0
    nan, huge = base.clone(), base.clone()
    nan[vocab // 3] = torch.nan
    huge[vocab - 1] = torch.inf
    return {
        "equal": torch.full((vocab,), 2.5),
        "ties": (base / 2).round(),
        "signed zeros": torch.where(place % 2 == 0, 0.0, -0.0),
        "large": base.sign() * 1e4,
        "far below": base - 1e4,
        "far above": base + 1e4,
        "masked": base.masked_fill(place % 3 != 1, -torch.inf),
        "one finite": one,
        "outlier": base.masked_fill(place == vocab // 4, -1e4),
        "tiny": base * 1e-40,
        "nothing": torch.full((vocab,), -torch.inf),
        "NaN": nan,
        "+inf": huge,
        "all NaN": torch.full((vocab,), torch.nan),
    }


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("vocab", [3, 101, 3000])
def test_special_rows(vocab: int, choice: str) -> None:
    rows = special_rows(vocab)
    options = {"vocab_size": vocab, **CHOICES[choice](vocab)}
    for dtype in DTYPES:
        logits = torch.stack(list(rows.values())).to(dtype)
        for uniform in (0.0, 1e-12, 0.37, 0.9, LAST):
            token, _ = compare(logits, torch.full((len(rows),), uniform, dtype=torch.float64), **options)
            found = dict(zip(rows, token.tolist(), strict=True))
            assert [found[name] for name in ("nothing", "NaN", "+inf", "all NaN")] == [-1] * 4
            assert found["one finite"] == vocab // 2 or options.get("known_ids", vocab) <= vocab // 2


def test_a_row_whose_known_ids_have_no_finite_logit_is_not_drawn_from(op: Op) -> None:
    logits = torch.tensor([[-torch.inf, -torch.inf, 1.0], [0.0, -torch.inf, 800.0]])
    for options in ({}, {"greedy": True}, {"top_k": 1}, {"top_p": 0.5}):
        token, logp = op(logits, torch.tensor([0.5, 0.5]).double(), vocab_size=3, known_ids=2, **options)
        assert token.tolist() == [-1, 0] and logp[0].isnan() and logp[1] == -800.0


def test_top_p_counts_equal_logits_in_the_order_of_their_ids(op: Op) -> None:
    """Of 4000 equal logits a quarter stays, whatever the larger one before them takes."""
    logits = torch.zeros(1, 4001)
    logits[0, 4000] = 1.0
    kept = (0.25 * (4000 + np.e) - np.e).__ceil__()
    token, _ = op(
        logits, torch.tensor([1 - np.e / (kept + np.e) - 1e-6], dtype=torch.float64), vocab_size=4001, top_p=0.25
    )
    assert token.item() == kept - 1
    token, _ = op(logits, torch.tensor([LAST], dtype=torch.float64), vocab_size=4001, top_p=0.25)
    assert token.item() == 4000


@pytest.mark.parametrize("count", [1, 31, 32, 33, 500, 5000])
def test_crowded_bins(count: int) -> None:
    """Logits that differ in their last bits, among others far away: bins are refined down to single numbers."""
    crowd = 1.0 + torch.randperm(count, generator=torch.Generator().manual_seed(0)) * torch.finfo(torch.float32).eps
    logits = torch.cat([torch.linspace(-50, 0, 300), crowd, torch.tensor([-1e4, 3.0])])[None].expand(40, -1)
    V, uniform = logits.shape[1], torch.linspace(0, LAST, 40, dtype=torch.float64)
    for options in ({"top_k": 1 + count // 2}, {"top_p": 0.5}, {"top_k": 1 + count // 3, "top_p": 0.7}):
        token, _ = compare(logits, uniform, vocab_size=V, **options)
        kept = filter_logits(logits[:1].double(), **options)[0] > -torch.inf
        assert kept[token].all()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_rows_and_padding_that_is_never_read(dtype: torch.dtype, choice: str) -> None:
    vocab, rows = 1003, 9
    plain = random_logits(rows, vocab).to(dtype)
    wide = torch.full((rows, vocab + 30), torch.nan, dtype=dtype)
    wide[:, 5 : 5 + vocab] = plain
    options = CHOICES[choice](vocab)
    expected = sample(plain, uniforms(rows), vocab_size=vocab, **options)
    padded = sample(wide[:, 5:], uniforms(2 * rows)[: 2 * rows : 2].clone(), vocab_size=vocab, **options)
    again = sample(wide[:, 5:], uniforms(2 * rows)[::2], vocab_size=vocab, **options)
    strided = sample(wide[:, 5 : 5 + vocab], uniforms(rows), vocab_size=vocab, **options)
    for got, want in zip((*strided, *padded), (*expected, *again), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("choice", CHOICES)
def test_neighbours_and_threads_change_no_bit(choice: str) -> None:
    logits, uniform = random_logits(64, 4099), uniforms(64)
    options = {"vocab_size": 4090, **CHOICES[choice](4090)}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        token, logp = sample(logits, uniform, **options)
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            assert all(
                torch.equal(a, b) for a, b in zip(sample(logits, uniform, **options), (token, logp), strict=True)
            )
    finally:
        torch.set_num_threads(threads)
    for rows in ([5], [63, 0], list(range(62, -1, -3))):
        alone = sample(logits[rows], uniform[rows], **options)
        assert torch.equal(alone[0], token[rows]) and torch.equal(alone[1], logp[rows])


def test_a_hundred_thousand_draws_have_the_frequencies_of_the_probabilities() -> None:
    count, logits = 100_000, random_logits(1, 300, scale=1.5)
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    for options in ({"temperature": 0.7}, {"top_k": 40}, {"top_p": 0.8}):
        token, _ = sample(logits.expand(count, -1), uniform, vocab_size=300, **options)
        temperature = options.pop("temperature", 1.0)
        probs = filter_logits(logits.double() / temperature, **options)[0].softmax(-1)
        visits = torch.bincount(token, minlength=300)
        assert (visits - count * probs).abs().max() <= 1.2, "to within one visit, and rounding"


def test_no_rows() -> None:
    for options in ({}, {"greedy": True}, {"top_k": 3, "top_p": 0.5}):
        token, logp = sample(torch.zeros(0, 7), torch.zeros(0).double(), vocab_size=7, **options)
        assert token.shape == logp.shape == (0,) and token.dtype == torch.int64 and logp.dtype == torch.float64


def test_registered_op() -> None:
    torch.library.opcheck(torch.ops.gipo_mc.sample, (random_logits(4, 9), uniforms(4), 8, 7, 0.7, 3, 0.9))
    torch.library.opcheck(torch.ops.gipo_mc.sample, (random_logits(4, 9), None, 8, 7, 0.7, 0, 1.0))
    token, logp = sample(torch.zeros(3, 5, device="meta"), torch.zeros(3, device="meta").double(), vocab_size=5)
    assert token.device.type == "meta" and logp.dtype == torch.float64


def test_references_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIPO_MC_OPS", "reference")
    monkeypatch.setattr(native, "_C", None)
    token, _ = ops.sample(random_logits(3, 5), uniforms(3), vocab_size=5)
    assert token.shape == (3,)


def test_no_gradient_reaches_the_logits() -> None:
    logits = random_logits(3, 5).requires_grad_()
    assert not sample(logits, uniforms(3), vocab_size=5)[1].requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits_BV": torch.zeros(3, 5, dtype=torch.int64)}, TypeError, "logits_BV has dtype torch.int64"),
        ({"logits_BV": torch.zeros(5)}, ValueError, "two dimensions"),
        ({"logits_BV": torch.zeros(5, 3).T}, ValueError, "not contiguous"),
        ({"uniform_B": None}, ValueError, "needs uniform_B"),
        ({"uniform_B": torch.zeros(3)}, TypeError, "uniform_B has dtype torch.float32"),
        ({"uniform_B": torch.zeros(4).double()}, ValueError, r"uniform_B has shape \[4\]"),
        ({"uniform_B": torch.tensor([0.0, 1.0, 0.5]).double()}, ValueError, r"outside \[0, 1\)"),
        ({"uniform_B": torch.tensor([0.0, torch.nan, 0.5]).double()}, ValueError, r"outside \[0, 1\)"),
        ({"vocab_size": 6}, ValueError, "vocab_size=6 must be from 1 to the 5 columns"),
        ({"vocab_size": 0}, ValueError, "vocab_size=0"),
        ({"known_ids": -1}, ValueError, "known_ids=-1"),
        ({"top_k": -1}, ValueError, "top_k=-1"),
        ({"top_p": 0.0}, ValueError, "top_p=0.0"),
        ({"top_p": 1.5}, ValueError, "top_p=1.5"),
        ({"temperature": 0.0}, ValueError, "temperature=0.0"),
    ],
)
def test_wrong_arguments_are_python_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits_BV": torch.zeros(3, 5), "uniform_B": torch.zeros(3).double(), "vocab_size": 5, **change}
    with pytest.raises(error, match=f"sample: .*{message}"):
        sample(**arguments)


def test_frequencies_are_the_probabilities(op: Op) -> None:
    """Evenly spread uniforms visit each token in proportion to its probability, to within one visit."""
    count = 4096
    logits = random_logits(1, 50, scale=1.5)
    tokens, logp = op(
        logits.expand(count, -1),
        (torch.arange(count, dtype=torch.float64) + 0.5) / count,
        vocab_size=50,
        temperature=0.7,
    )
    probs = (logits[0].double() / 0.7).softmax(-1)
    frequency = torch.bincount(tokens, minlength=50) / count
    assert (frequency - probs).abs().max() <= 1.0 / count
    torch.testing.assert_close(logp, probs[tokens].log(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_prob_is_before_filtering_and_at_temperature(op: Op, dtype: torch.dtype) -> None:
    logits = random_logits(32, 60).to(dtype)
    uniforms = torch.rand(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens, logp = op(logits, uniforms, vocab_size=60, temperature=1.3, top_k=4, top_p=0.8)
    expected = (logits.double() / 1.3).log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    assert logp.dtype == torch.float64
    torch.testing.assert_close(logp, expected, rtol=1e-6, atol=1e-6)
    candidates = filter_logits(logits.double() / 1.3, top_k=4, top_p=0.8).isfinite()
    assert candidates.gather(1, tokens[:, None]).all()


def test_padded_vocabulary_is_never_drawn_and_never_counted(op: Op) -> None:
    logits = random_logits(64, 40)
    padded = torch.cat([logits, torch.full((64, 8), 50.0)], dim=1)
    uniforms = torch.linspace(0, 1 - 1e-12, 64, dtype=torch.float64)
    for options in ({}, {"top_k": 5}, {"top_p": 0.7}, {"greedy": True}):
        token, logp = op(padded, uniforms, vocab_size=40, **options)
        plain_token, plain_logp = op(logits, uniforms, vocab_size=40, **options)
        assert torch.equal(token, plain_token) and torch.equal(logp, plain_logp)
        assert token.max() < 40


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"greedy": True}])
def test_ids_without_a_text_are_never_drawn_but_have_their_probability(op: Op, options: dict[str, Any]) -> None:
    """A model of 6 rows whose tokenizer has 4 ids. The log-prob is the model's: training computes it over all six."""
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.5, 9.0, 8.0]]).repeat(200, 1)
    uniform = torch.linspace(0, 1, 201, dtype=torch.float64)[:-1]
    token, logp = op(logits, uniform, vocab_size=6, known_ids=4, **options)
    assert int(token.max()) < 4 and (token == 2).any()
    torch.testing.assert_close(logp, logits[0].double().log_softmax(0)[token])
    plain = op(logits[:, :4], uniform, vocab_size=4, **options)[0]
    assert torch.equal(token, plain), "as if those ids were not there"


def test_greedy_takes_the_first_of_the_largest(op: Op) -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [5.0, 2.0, 2.0, 5.0]])
    token, logp = op(logits, None, vocab_size=4, greedy=True)
    assert token.tolist() == [1, 0]
    torch.testing.assert_close(logp, logits.double().log_softmax(-1).amax(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"top_k": 7}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.9}, {"greedy": True}])
def test_a_row_does_not_feel_its_neighbours(op: Op, options: dict) -> None:
    """Bitwise: any subset, order and size of batch gives each row the same token and log-prob."""
    logits = random_logits(33, 257)
    uniforms = torch.rand(33, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    token, logp = op(logits, uniforms, vocab_size=250, temperature=0.9, **options)
    for rows in ([5], [0, 32], list(range(32, -1, -1)), list(range(0, 33, 3)), [4] * 9):
        alone_token, alone_logp = op(logits[rows], uniforms[rows], vocab_size=250, temperature=0.9, **options)
        assert torch.equal(alone_token, token[rows]) and torch.equal(alone_logp, logp[rows])


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_rows_are_marked_and_spare_the_others(op: Op, bad: float, greedy: bool) -> None:
    logits = random_logits(3, 12)
    uniforms = torch.full((3,), 0.5, dtype=torch.float64)
    whole, whole_logp = op(logits, uniforms, vocab_size=12, greedy=greedy)
    logits[1, 7] = bad
    token, logp = op(logits, uniforms, vocab_size=12, top_p=1.0, greedy=greedy)
    assert token[1] == -1 and logp[1].isnan()
    assert torch.equal(token[[0, 2]], whole[[0, 2]]) and torch.equal(logp[[0, 2]], whole_logp[[0, 2]])


def test_minus_infinity_is_a_probability_of_zero(op: Op) -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    token, logp = op(logits, torch.tensor([0.5], dtype=torch.float64), vocab_size=3)
    assert token.item() == 2 and logp.isfinite().all()
