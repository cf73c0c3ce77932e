"""How large a checkpoint of a model is going to be, before there is one."""

from __future__ import annotations

import torch

from gipo_mc.parallel.collectives import sum_in_rank_order
from gipo_mc.parallel.layout import Layout

_FLOAT = 4


def saved_bytes(model: torch.nn.Module, layout: Layout, *, distributed_optimizer: bool) -> int:
    """Bytes of the tensors that a checkpoint has of a trained model and its Adam. A collective.

    Weights that several ranks hold count once, as they are written once.
    """
    width = next(model.parameters()).element_size()
    # Two moments; float32 weights where the model's are narrower, or where the optimizer's format has them anyway.
    copies = 3 if width < _FLOAT or distributed_optimizer else 2
    own = sum(weight.numel() for weight in model.parameters() if _is_first_to_hold(weight, layout))
    numbers = int(sum_in_rank_order(torch.tensor(own, device=layout.device)))
    return numbers * (width + copies * _FLOAT)


def _is_first_to_hold(weight: torch.nn.Parameter, layout: Layout) -> bool:
    tied = getattr(weight, "shared_embedding", False) and not layout.is_first_stage  # the last stage's copy
    whole = not getattr(weight, "tensor_model_parallel", False)
    return layout.data_rank == 0 and not tied and not (whole and layout.tensor_rank > 0)
