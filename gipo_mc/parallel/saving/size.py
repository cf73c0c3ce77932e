"""How large a checkpoint of a model is going to be, before there is one. Plans read it, which need no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gipo_mc.parallel.layout import Layout

_FLOAT = 4


def bytes_of_a_number(width: int, *, distributed_optimizer: bool) -> int:
    """Bytes that a checkpoint has of each number of a trained model, itself of `width` bytes, and of its Adam: the
    weight, two moments, and a float32 weight where the model's is narrower, or where the optimizer's format has it
    anyway."""
    return width + _FLOAT * (3 if width < _FLOAT or distributed_optimizer else 2)


def saved_bytes(model: torch.nn.Module, layout: Layout, *, distributed_optimizer: bool) -> int:
    """Bytes of the tensors that a checkpoint has of a trained model and its Adam. A collective.

    Weights that several ranks hold count once, as they are written once.
    """
    import torch

    from gipo_mc.parallel.collectives import sum_in_rank_order

    width = next(model.parameters()).element_size()
    own = sum(weight.numel() for weight in model.parameters() if _is_first_to_hold(weight, layout))
    numbers = int(sum_in_rank_order(torch.tensor(own, device=layout.device)))
    return numbers * bytes_of_a_number(width, distributed_optimizer=distributed_optimizer)


def _is_first_to_hold(weight: torch.nn.Parameter, layout: Layout) -> bool:
    tied = getattr(weight, "shared_embedding", False) and not layout.is_first_stage  # the last stage's copy
    whole = not getattr(weight, "tensor_model_parallel", False)
    return layout.data_rank == 0 and not tied and not (whole and layout.tensor_rank > 0)
