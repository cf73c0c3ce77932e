"""Checks of what a caller hands to an op. Each failure is a sentence with the numbers involved and the fix.

Types, shapes and devices are checked for every tensor; values (target ids, lengths, probabilities) only on the CPU,
where looking at them costs no synchronisation. On CUDA the kernels stay inside their buffers whatever the values are.
"""

from __future__ import annotations

import math
import operator
from typing import Literal, get_args

import torch
from torch import Tensor

IGNORED_TARGET = -100
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
KlEstimator = Literal["k1", "k2", "k3"]
SignalForm = Literal["ratio", "log_prob", "log_prob_mean"]
ESTIMATORS: tuple[KlEstimator, ...] = get_args(KlEstimator)
SIGNAL_FORMS: tuple[SignalForm, ...] = get_args(SignalForm)
#: The commands' options have two words for what is one here.
_FORMS_OF_THE_OPTIONS = (
    " The option algorithm.signal_form=value is ratio here; log_prob is log_prob with signal_tokens=sum, and "
    "log_prob_mean with signal_tokens=mean."
)
#: What to pass for what a trainer does not have.
_ABSENT = {
    "behaviour_logp_BT": "In the first step after sampling pass the policy's own log-probs, detached: ratios of 1.",
    "reference_logp_BT": "Without a reference model pass the behaviour log-probs, and zeros [B] as kl_weight_B.",
    "length_B": "Where every response fills its row pass torch.full((B,), T).",
    "group_probs_BM": "Without groups pass torch.ones(B, 1).",
    "behaviour_signal_B": "The form 'ratio' needs what R_g averages, such as rewards; for the others pass zeros [B].",
    "kl_weight_B": "Without a KL penalty pass zeros [B].",
}
#: How far rows of probabilities, and the sum of all masses, may be from what they should be: bfloat16 rounds by up to
#: 0.004, and log-probs of it by more.
_ROUNDING = 0.01


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """dtype of sums and outputs for inputs of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def a_tensor(op: str, name: str, value: object) -> None:
    """`value` must be a tensor: lists and arrays are not converted, which would hide their dtype and device."""
    if not isinstance(value, Tensor):
        if value is None:
            raise TypeError(f"{op}: {name} must be a tensor, not None. {_ABSENT.get(name, '')}".rstrip())
        raise TypeError(f"{op}: {name} must be a tensor, not {type(value).__name__}; make one with torch.as_tensor.")


def floats(op: str, name: str, tensor: Tensor) -> None:
    """`tensor` must be one of the floating types that the kernels know."""
    a_tensor(op, name, tensor)
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} has dtype {tensor.dtype}; give float32, bfloat16, float16 or float64.")
    if tensor.layout != torch.strided:
        raise TypeError(f"{op}: {name} has layout {tensor.layout}; give a dense tensor.")
    if tensor.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{op}: {name} is on {tensor.device}; the kernels run on cpu and cuda.")
    if tensor.device.type == "cuda" and tensor.dtype == torch.float64:
        raise TypeError(f"{op}: {name} is float64 on CUDA; float64 is for checks on the CPU, use float32 here.")


def like(
    op: str,
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    whose: str = "",
    remark: str = "",
) -> None:
    """`tensor` must have exactly this shape and dtype, on this device. whose: what the dtype follows from. remark: how
    to come by the shape."""
    a_tensor(op, name, tensor)
    if tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} has dtype {tensor.dtype}, but {dtype}{whose} is needed here; convert it first.")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, but {list(shape)} is needed here.{remark}")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, the other inputs on {device}; move it there.")


def choice(op: str, name: str, value: str, allowed: tuple[str, ...], remark: str = "") -> int:
    """Position of `value` in `allowed`."""
    if value not in allowed:
        raise ValueError(f"{op}: {name}={value!r} is not known; give one of {', '.join(allowed)}.{remark}")
    return allowed.index(value)


def number(
    op: str, name: str, value: float, *, above: float | None = None, low: float = -math.inf, meaning: str = ""
) -> None:
    """`value` must be one number (of Python or numpy, or a tensor without dimensions), finite, > above or >= low."""
    if not isinstance(value, (int, float)) and getattr(value, "ndim", None) != 0:
        raise TypeError(f"{op}: {name}={value!r} must be one number{meaning}.")
    if not math.isfinite(value) or value < low or (above is not None and value <= above):
        bound = f" above {above}" if above is not None else f" of at least {low}" if low > -math.inf else ""
        raise ValueError(f"{op}: {name}={value} must be a finite number{bound}.")


def group(op: str, best_group: int | Tensor, groups: int) -> int:
    """`best_group` as an int, which must be the position of one of the groups; a tensor of one integer is taken too."""
    try:
        position = operator.index(best_group)
    except TypeError:
        raise TypeError(
            f"{op}: best_group={best_group!r} must be an integer, not a {type(best_group).__name__}; give the position "
            "of a group, or None while no best group is known."
        ) from None
    if not 0 <= position < groups:
        raise ValueError(
            f"{op}: best_group={position} is not one of the {groups} groups of group_probs_BM; give 0 to {groups - 1}, "
            "or None while no best group is known."
        )
    return position


def values_visible(tensor: Tensor) -> bool:
    """True where the values of `tensor` can be looked at for free."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and tensor.numel() > 0


def probabilities(op: str, name: str, probs_BM: Tensor, batch: int | None = None) -> None:
    """[B, M] with at least one group, and `batch` rows where that is known."""
    a_tensor(op, name, probs_BM)
    if not probs_BM.is_floating_point():
        raise TypeError(
            f"{op}: {name} has dtype {probs_BM.dtype} and shape {list(probs_BM.shape)}; give float32 [B, M], "
            "probabilities. Of labels [B] take torch.nn.functional.one_hot(labels, M).float()."
        )
    floats(op, name, probs_BM)
    shape = list(probs_BM.shape)
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"{op}: {name} has shape {shape}; give [B, M], a row for each sequence, at least one group.")
    if batch is not None and shape[0] != batch:
        turned = ", the transpose of this (.t())" if shape[1] == batch else ""
        raise ValueError(f"{op}: {name} has shape {shape}, but there are B={batch} sequences; give [B, M]{turned}.")


def rows_add_up(op: str, name: str, probs_BM: Tensor) -> None:
    """Rows of probabilities lie in [0, 1] and add up to 1, but for rounding: logits and transposes do not."""
    if not values_visible(probs_BM):
        return
    seen_BM = probs_BM.detach()
    low = float(seen_BM.amin())
    least, most = (float(x) for x in torch.aminmax(seen_BM.sum(1, dtype=accumulator(seen_BM.dtype))))
    if not (low >= -_ROUNDING and least >= 1 - _ROUNDING and most <= 1 + _ROUNDING):
        raise ValueError(
            f"{op}: {name} {list(seen_BM.shape)} has values from {low:.4g} to {float(seen_BM.amax()):.4g}, and its "
            f"rows add up to {least:.4g} to {most:.4g}; each row [M] must be probabilities, from 0 to 1 and with sum "
            "1. Of logits take .softmax(dim=1), of [M, B] the transpose (.t())."
        )


def coefficients(op: str, name: str, values_B: Tensor) -> None:
    """No value may be negative, infinite or NaN."""
    if values_visible(values_B):
        low, high = (float(x) for x in torch.aminmax(values_B.detach()))
        if not 0.0 <= low <= high < math.inf:
            raise ValueError(f"{op}: {name} has values from {low} to {high}; they must be finite and at least 0.")


def sums_by_group(op: str, mass_M: Tensor, weighted_M: Tensor, total: int | float | Tensor, *, of_all: bool) -> None:
    """P and Q [M] of one dtype, and N. of_all: the masses must add up to N, where that can be seen for free."""
    floats(op, "mass_M", mass_M)
    if mass_M.dim() != 1 or mass_M.shape[0] == 0:
        raise ValueError(
            f"{op}: mass_M has shape {list(mass_M.shape)}; give [M], summed over all sequences: of probabilities "
            "[B, M] take .sum(0)."
        )
    a_tensor(op, "weighted_M", weighted_M)
    if weighted_M.dtype != mass_M.dtype:
        raise TypeError(
            f"{op}: mass_M has dtype {mass_M.dtype} and weighted_M {weighted_M.dtype}, but both must have one. Sum "
            "both from float32: autocast leaves probabilities in bfloat16 or float16, of which take probs.float()."
        )
    like(op, "weighted_M", weighted_M, tuple(mass_M.shape), mass_M.dtype, mass_M.device)
    if isinstance(total, Tensor):
        if total.numel() != 1:
            raise ValueError(f"{op}: total has shape {list(total.shape)}; give one number, that of all sequences.")
        visible = values_visible(mass_M) and values_visible(total)
    else:
        number(op, "total", total, low=0.0)
        visible = values_visible(mass_M)
    if of_all and visible:
        found, given = float(mass_M.detach().sum()), float(total)
        if abs(found - given) > _ROUNDING * max(1.0, given):
            raise ValueError(
                f"{op}: mass_M adds up to {found:.6g} sequences, but total={given:.6g}; with weights='size' they must "
                "agree. Sum masses, weighted signals and total over the same sequences: all micro-batches, all ranks."
            )


def lengths(op: str, length_B: Tensor, batch: int, time: int, device: torch.device) -> None:
    """Response lengths: int64 [B], each in [0, T]."""
    a_tensor(op, "length_B", length_B)
    if length_B.dtype == torch.bool or length_B.dim() == 2:
        raise TypeError(
            f"{op}: length_B has dtype {length_B.dtype} and shape {list(length_B.shape)}; give int64 [B], the tokens "
            "of each response. Of a mask [B, T] pass mask.sum(1): responses begin at t=0, and a mask with gaps is not "
            "supported (docs/library.md says how to close them)."
        )
    like(op, "length_B", length_B, (batch,), torch.int64, device)
    if values_visible(length_B):
        low, high = (int(v) for v in torch.aminmax(length_B))
        if low < 0 or high > time:
            raise ValueError(
                f"{op}: length_B has values from {low} to {high}, but T={time}: they must be in [0, {time}]."
            )


def targets(op: str, targets_N: Tensor, vocabulary: int, *, ignored: bool = True) -> None:
    """Target ids must be in the vocabulary, or, with `ignored`, -100."""
    if not values_visible(targets_N):
        return
    wrong = (targets_N < 0) | (targets_N >= vocabulary)
    if ignored:
        wrong &= targets_N != IGNORED_TARGET
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        exception = f"; {IGNORED_TARGET} is ignored" if ignored else ""
        raise ValueError(
            f"{op}: targets_N[{row}] = {int(targets_N[row])} is outside the vocabulary of {vocabulary} ids "
            f"(0 to {vocabulary - 1}{exception}): the tokenizer and the model do not agree, "
            "or the row is padding and should not be here."
        )


def rows_of_logits(op: str, name: str, logits: Tensor) -> None:
    """[rows, columns] with at least one column, which are contiguous."""
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"{op}: {name} has shape {list(logits.shape)}; give two dimensions and at least one column.")
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(
            f"{op}: the columns of {name} are not contiguous (strides {logits.stride()}): it is transposed or "
            "expanded. Call .contiguous() on it, or better, produce it in that order."
        )


def logits(op: str, logits_NV: Tensor, targets_N: Tensor, temperature: float) -> None:
    """Logits [N, V] with contiguous columns, a target id for each row, and a temperature."""
    floats(op, "logits_NV", logits_NV)
    rows_of_logits(op, "logits_NV", logits_NV)
    like(op, "targets_N", targets_N, (logits_NV.shape[0],), torch.int64, logits_NV.device)
    number(op, "temperature", temperature, above=0.0)


def sampling(
    op: str,
    logits_BV: Tensor,
    uniform_B: Tensor | None,
    vocab_size: int,
    known_ids: int,
    temperature: float,
    top_k: int,
    top_p: float,
    greedy: bool,
) -> None:
    """Logits [B, V] with contiguous columns, a uniform number for each row unless greedy, and what filters them."""
    floats(op, "logits_BV", logits_BV)
    rows_of_logits(op, "logits_BV", logits_BV)
    if not 1 <= vocab_size <= logits_BV.shape[1]:
        raise ValueError(
            f"{op}: vocab_size={vocab_size} must be from 1 to the {logits_BV.shape[1]} columns of the logits."
        )
    for name, value in (("known_ids", known_ids), ("top_k", top_k)):
        if value < 0:
            raise ValueError(f"{op}: {name}={value} must be positive, or 0 for all.")
    number(op, "temperature", temperature, above=0.0)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"{op}: top_p={top_p} must be above 0 and at most 1, which keeps all.")
    if greedy:
        return
    if uniform_B is None:
        raise ValueError(f"{op}: sampling needs uniform_B, a number in [0, 1) for each row; greedy=True needs none.")
    like(op, "uniform_B", uniform_B, (logits_BV.shape[0],), torch.float64, logits_BV.device)
    if values_visible(uniform_B):
        low, high = (float(x) for x in torch.aminmax(uniform_B))
        if not (low >= 0.0 and high < 1.0):
            raise ValueError(f"{op}: uniform_B has values from {low} to {high}, outside [0, 1).")


def overwritable(op: str, logits_NV: Tensor) -> None:
    """The backward pass may write over these logits."""
    if logits_NV.requires_grad and logits_NV.is_leaf:
        raise ValueError(
            f"{op}: inplace_backward=True would overwrite a leaf tensor (a parameter or an input of the graph) with "
            "its gradient. Use it on computed logits only."
        )
    if logits_NV.requires_grad and logits_NV.shape[0] > 1 and logits_NV.stride(0) < logits_NV.shape[1]:
        raise ValueError(
            f"{op}: inplace_backward=True needs rows that do not overlap, but logits_NV has strides "
            f"{logits_NV.stride()} for shape {list(logits_NV.shape)}: it is expanded. Leave the option off."
        )


def objective(
    op: str,
    dtype: torch.dtype,
    device: torch.device,
    tokens_BT: dict[str, Tensor],
    length_B: Tensor,
    group_probs_BM: Tensor,
    behaviour_signal_B: Tensor,
    kl_weight_B: Tensor,
    *,
    clip: float,
    kl_estimator: KlEstimator,
    signal_form: SignalForm,
    check_values: bool,
) -> tuple[int, int]:
    """What op B takes: `tokens_BT` [B, T] of `dtype` by name, the first of which gives the shape, and what each
    sequence has. (kl_estimator, signal_form) as positions in ESTIMATORS and SIGNAL_FORMS. check_values: look at
    probabilities and KL weights too."""
    first, tensor = next(iter(tokens_BT.items()))
    a_tensor(op, first, tensor)
    if tensor.dim() != 2:
        raise ValueError(f"{op}: {first} has shape {list(tensor.shape)}; give [B, T].")
    (batch, time), wide = tensor.shape, accumulator(dtype)
    whose = f", that of {first}," if first == "logp_BT" else " (float64 beside float64 logits, else float32)"
    for name, tensor in tokens_BT.items():
        remark = ""
        if name == "advantage_BT" and isinstance(tensor, Tensor) and tuple(tensor.shape) in ((batch,), (batch, 1)):
            remark = " Where a response has one for all its tokens, pass advantage.view(-1, 1).expand(-1, T)."
        like(op, name, tensor, (batch, time), dtype, device, whose=whose, remark=remark)
    probabilities(op, "group_probs_BM", group_probs_BM, batch)
    whose = " (float64 beside float64 log-probs, else float32)"
    like(op, "group_probs_BM", group_probs_BM, (batch, group_probs_BM.shape[1]), wide, device, whose=whose)
    like(op, "behaviour_signal_B", behaviour_signal_B, (batch,), wide, device, whose=whose)
    like(op, "kl_weight_B", kl_weight_B, (batch,), wide, device, whose=whose)
    lengths(op, length_B, batch, time, device)
    if check_values:
        rows_add_up(op, "group_probs_BM", group_probs_BM)
        coefficients(op, "kl_weight_B", kl_weight_B)
    number(op, "clip", clip, above=0.0, meaning=": the ratio is kept between 1 - clip and 1 + clip")
    estimator = choice(op, "kl_estimator", kl_estimator, ESTIMATORS)
    return estimator, choice(op, "signal_form", signal_form, SIGNAL_FORMS, _FORMS_OF_THE_OPTIONS)
