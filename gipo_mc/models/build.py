"""A pipeline stage with its first weights."""

from __future__ import annotations

from typing import Literal

import torch

from gipo_mc.errors import ConfigError
from gipo_mc.models.execution import PLAIN, Execution, check_machine
from gipo_mc.models.megatron_config import transformer_config
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import ChunkedStage, HeadKind, ModelChunk, StageModel
from gipo_mc.models.weights.initialisation import initialize_heads, initialize_trunk
from gipo_mc.parallel import runtime
from gipo_mc.parallel.layout import Layout


def build_model(
    shape: ModelShape,
    layout: Layout,
    *,
    head: HeadKind,
    groups: int = 0,
    group_head: Literal["mlp", "linear"] = "mlp",
    dtype: torch.dtype,
    trainable: bool,
    seed: int = 1,
    initialize: bool = True,
    execution: Execution = PLAIN,
) -> StageModel:
    """This rank's stage, on `layout.device`, in train mode if `trainable`, else frozen and in eval mode.

    Weights are drawn from one stream a parameter, keyed by (seed, name): the same model in every layout. Heads are
    always initialised; `initialize=False` leaves the trunk to `load_hf_weights` or a checkpoint. Needs the process
    groups (`gipo_mc.parallel.runtime.initialize`). Raises ConfigError if the shape does not fit the layout, or the
    machine cannot do what `execution` asks for.
    """
    shape.check(*layout.model_sizes)
    check_machine(execution, shape, layout, dtype)
    if head == "critic" and groups < 1:
        raise ConfigError(f"A critic with a group head needs algorithm.groups >= 1, not {groups}.")
    config = transformer_config(shape, layout, dtype, execution)
    chunks = [
        ModelChunk(
            config, shape, layout, head=head, groups=groups, group_head=group_head, execution=execution, number=number
        )
        for number in range(layout.virtual)
    ]
    model: StageModel = chunks[0] if layout.virtual == 1 else ChunkedStage(chunks)
    if initialize:
        initialize_trunk(model, seed)
    initialize_heads(model, seed)
    model.to(layout.device)
    runtime.suit_threads(sum(parameter.numel() for parameter in model.parameters()))
    return model.train() if trainable else model.requires_grad_(False).eval()
