"""What all ops stand on: the extension, the switch to the references, number formats, the exponential."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gipo_mc import ops
from gipo_mc.errors import ConfigError
from gipo_mc.ops import checks, native
from gipo_mc.ops.group_objective import GROUP_FIELDS, SEQUENCE_FIELDS
from gipo_mc.ops.shape_and_gae import SUM_FIELDS
from gipo_mc.ops.token_objective import JOINED_FIELDS, TOKEN_FIELDS
from gipo_mc.ops.token_statistics import PARTIAL_FIELDS, ROW_FIELDS, token_gradient, token_partials
from tests.ops.cases import HALF, objective_case, shaping_case

OBJECTIVE = {"clip": 0.2, "kl_estimator": "k1", "signal_form": "ratio"}
SHAPING = {"gamma": 1.0, "lam": 0.95, "kl_estimator": "k1"}


def test_the_build_says_what_it_holds() -> None:
    info = native.module().build_info()
    kernels = [name for name in dir(native.module()) if name.endswith("_cuda")]
    assert bool(kernels) is info["cuda"] and bool(info["cuda_architectures"]) is info["cuda"]
    assert ("CUDA" in ops.describe_build()) is info["cuda"]
    assert info["cpu"] in ops.describe_build("cpu") and "CUDA" not in ops.describe_build("cpu")


def test_the_references_can_be_chosen_and_say_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    native._say_reference.cache_clear()
    monkeypatch.setenv("GIPO_MC_OPS", "reference")
    monkeypatch.setattr(native, "call", lambda *_: pytest.fail("a kernel was called"))
    with pytest.warns(UserWarning, match="eager references") as caught:
        ops.token_statistics(torch.zeros(2, 3), torch.tensor([0, -100]))
        ops.group_objective(**objective_case(2, 3, 2), **OBJECTIVE)
        ops.shape_and_gae(**shaping_case(2, 3), **SHAPING)
    assert len(caught) == 1
    with pytest.raises(ValueError, match="outside the vocabulary"):
        ops.token_statistics(torch.zeros(2, 3), torch.tensor([0, 3]))
    monkeypatch.setenv("GIPO_MC_OPS", "fast")
    with pytest.raises(ValueError, match="GIPO_MC_OPS=fast: set it to native"):
        ops.token_statistics(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_the_kernels_are_the_default_and_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(native, "call", lambda name, *_: called.append(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.token_statistics(torch.zeros(2, 3), torch.tensor([0, 1]))
        ops.group_objective(**objective_case(2, 3, 2), **OBJECTIVE)
        ops.shape_and_gae(**shaping_case(2, 3), **SHAPING)
    assert called == ["token_statistics", "group_objective", "shape_and_gae"]


def test_a_missing_extension_is_an_import_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_C", None)
    monkeypatch.setattr(native, "_failure", ImportError("no such file"), raising=False)
    with pytest.raises(ImportError, match=r"no such file.*pip install --no-deps -e \..*reference"):
        ops.token_statistics(torch.zeros(2, 3), torch.tensor([0, 1]))
    monkeypatch.setenv("GIPO_MC_OPS", "reference")
    assert ops.token_statistics(torch.zeros(2, 3), torch.tensor([0, 1])).logp_N.shape == (2,)


def test_cuda_tensors_without_cuda_kernels_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_C", SimpleNamespace(build_info=lambda: {"cuda": False}))
    with pytest.raises(RuntimeError, match="built without CUDA kernels"):
        native.call("token_merge", torch.device("cuda:0"))
    with pytest.raises(ConfigError, match=r"built without CUDA kernels.*GIPO_MC_CUDA=1 make -B venv"):
        native.check_cuda()
    monkeypatch.setenv("GIPO_MC_OPS", "reference")
    native.check_cuda()


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a CUDA device")
def test_a_cuda_launch_without_a_device_is_an_exception() -> None:
    if not native.module().build_info()["cuda"]:
        pytest.skip("built without CUDA kernels")
    with pytest.raises(RuntimeError, match="did not start"):
        native.module().token_merge_cuda(0, 0, 1, 1, 0, 1.0, 0, 0, 0, 0)


def test_unknown_dtype_codes_do_not_reach_memory() -> None:
    with pytest.raises(ValueError, match="unknown dtype code 9"):
        native.module().token_merge_cpu(0, 9, 1, 1, 0, 1.0, 0, 0, 0, 1)


@pytest.mark.parametrize("dtype", HALF)
def test_every_half_precision_number_is_read_exactly(dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[:, None]
    read = token_partials(numbers, torch.zeros(2**16, dtype=torch.int64), 0, 1, 1.0)[3]
    assert torch.equal(torch.nan_to_num(read, nan=0.5), torch.nan_to_num(numbers[:, 0].float(), nan=0.5))
    assert torch.equal(read.isnan(), numbers[:, 0].isnan())


@pytest.mark.parametrize("dtype", HALF)
def test_float32_is_rounded_to_half_precision_as_torch_does(dtype: torch.dtype) -> None:
    """The gradient of a target logit of -inf is its upstream gradient: random bit patterns, ties, limits, NaN."""
    bits = torch.randint(-(2**31), 2**31, (200_000,))
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    ties = halves + (torch.nextafter(halves.to(dtype), torch.tensor(torch.inf, dtype=dtype)).float() - halves) / 2
    limits = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 65519.9, 65520.0, 65536.0, 3.4e38, 1e-45])
    numbers = torch.cat((bits.to(torch.int32).view(torch.float32), ties, limits))
    count = len(numbers)
    logits = torch.full((count, 1), -torch.inf, dtype=dtype)
    targets = torch.zeros(count, dtype=torch.int64)
    got = token_gradient(logits, targets, torch.zeros(count), torch.zeros(2, count), numbers, None, 0, 1, 1, 1.0)[:, 0]
    want = numbers.to(dtype)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(torch.nan_to_num(got, 0.5, 9e9, -9e9), torch.nan_to_num(want, 0.5, 9e9, -9e9))


def test_the_exponential_is_accurate_over_its_whole_range() -> None:
    """ratio_max of one token is e^(logp - behaviour)."""
    x = torch.cat(
        (torch.linspace(-110, 95, 400_001), torch.randn(100_000) * 1e-3, torch.tensor([0.0, -torch.inf, torch.inf]))
    )[:, None]
    zeros, one = torch.zeros_like(x), torch.ones(len(x), dtype=torch.int64)
    out = ops.group_objective(x, zeros, zeros, zeros, one, torch.ones_like(x), zeros[:, 0], zeros[:, 0], **OBJECTIVE)
    exact = x[:, 0].double().exp()
    normal = (exact >= torch.finfo(torch.float32).tiny) & (exact <= torch.finfo(torch.float32).max)
    relative = (out.ratio_max_B.double() - exact).abs() / exact
    assert relative[(exact > 2e-38) & (exact < 2e38)].max() < 2e-7
    assert (out.ratio_max_B[~normal & (exact < 1)] < 1.2e-38).all()  # subnormal results may be 0
    assert (out.ratio_max_B[exact > 3.4028236e38] == torch.inf).all()
    assert out.ratio_max_B[-3:].tolist() == [1.0, 0.0, torch.inf]


def test_small_kl_is_not_lost_to_cancellation() -> None:
    """k3 of a difference of 1e-4 is 5e-9: e^x - 1 - x computed as written would be rounding noise."""
    case = objective_case(1, 200, 1, lengths=[200])
    case["reference_logp_BT"] = torch.zeros(1, 200)
    case["logp_BT"] = torch.linspace(-2e-4, 2e-4, 200)[None]
    out = ops.group_objective(**case, **{**OBJECTIVE, "kl_estimator": "k3"})
    x = case["logp_BT"].double()
    torch.testing.assert_close(out.kl_B.double(), (torch.expm1(-x) + x).sum(1), rtol=1e-5, atol=0)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads in /proc")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """The helpers that share a kernel's rows do not exist in a child; it must neither wait for them nor crash."""
    case = objective_case(64, 4096, 2)  # enough for several threads
    torch.set_num_threads(4)
    expected = ops.group_objective(**case, **OBJECTIVE).surrogate_B
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        before = len(os.listdir("/proc/self/task"))
        same = torch.equal(ops.group_objective(**case, **OBJECTIVE).surrogate_B, expected)
        os._exit(0 if same and len(os.listdir("/proc/self/task")) > before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(ops.group_objective(**case, **OBJECTIVE).surrogate_B, expected)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "GOMP_parallel") or not os.path.exists("/proc/self/task"),
    reason="torch has no OpenMP of this interface, or there is no /proc to count threads in",
)
@pytest.mark.parametrize("sequences", [4, 64], ids=["two threads", "all threads"])
def test_kernels_share_the_threads_that_torch_has(sequences: int) -> None:
    """Threads of our own beside torch's, which stay awake after its operations, would wait for a processor; and a team
    smaller than torch's would end the threads left over."""
    case = objective_case(sequences, 4096 if sequences > 4 else 2048, 2)
    torch.set_num_threads(7)  # more than any other test has had by now
    torch.ones(4096, 4096).exp_()
    before = set(os.listdir("/proc/self/task"))
    ops.group_objective(**case, **OBJECTIVE)
    assert set(os.listdir("/proc/self/task")) == before


def test_kernels_called_by_several_threads_at_a_time() -> None:
    case = objective_case(64, 4096, 2)
    torch.set_num_threads(3)
    expected = ops.group_objective(**case, **OBJECTIVE).surrogate_B

    def work(_: int) -> bool:
        return all(torch.equal(ops.group_objective(**case, **OBJECTIVE).surrogate_B, expected) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_helpers_treat_subnormal_numbers_as_the_calling_thread_does() -> None:
    """A ratio of e^-87.5 is subnormal times 1e-3: kept or flushed, by every thread alike."""
    torch.set_num_threads(4)
    case = objective_case(64, 4096, 2)
    case["logp_BT"], case["behaviour_logp_BT"] = torch.full((64, 4096), -86.0), torch.zeros(64, 4096)
    case["advantage_BT"] = torch.full((64, 4096), 1e-4)
    case["length_B"] = torch.full((64,), 4096)
    try:
        for flush in (False, True, False):
            if not torch.set_flush_denormal(flush):
                pytest.skip("this processor has no such setting")
            for _ in range(5):
                surrogate_B = ops.group_objective(**case, **OBJECTIVE).surrogate_B
                assert (surrogate_B == 0).all() if flush else (surrogate_B > 0).all()
    finally:
        torch.set_flush_denormal(False)


def test_meta_tensors_and_modes_see_the_registered_ops() -> None:
    logits, targets = torch.zeros(2, 3, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    assert ops.token_statistics(logits, targets).entropy_N.shape == (2,)
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Recorder():
        ops.token_statistics(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert "gipo_mc.token_statistics.default" in seen


@pytest.mark.parametrize(
    ("header", "enum", "count"),
    [
        ("token_statistics.h", "PartialField", PARTIAL_FIELDS),
        ("token_statistics.h", "RowField", ROW_FIELDS),
        ("group_objective.h", "SequenceField", SEQUENCE_FIELDS),
        ("group_objective.h", "GroupField", GROUP_FIELDS),
        ("token_objective.h", "TokenField", TOKEN_FIELDS),
        ("token_objective.h", "JoinedField", JOINED_FIELDS - SEQUENCE_FIELDS),
        ("shape_and_gae.h", "SumField", SUM_FIELDS),
        ("numbers.h", "class DType", len(native.DTYPE_CODES)),
        ("formulas.h", "Estimator", len(checks.ESTIMATORS)),
        ("formulas.h", "SignalForm", len(checks.SIGNAL_FORMS)),
    ],
)
def test_the_headers_count_as_python_does(header: str, enum: str, count: int) -> None:
    source = (Path(__file__).resolve().parents[2] / "csrc" / header).read_text()
    (declared,) = re.findall(rf"enum {enum} : int \{{([^}}]*)\}}", source)
    names = [name.partition("=")[0].strip() for name in declared.split(",")]
    assert len([name for name in names if not name.endswith("Fields")]) == count
