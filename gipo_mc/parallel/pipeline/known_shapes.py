"""Messages between the stages of a pipeline whose shapes are known on both sides.

With micro-batches of different lengths, Megatron announces each tensor with a message that holds its shape, and on a
GPU waits for the device before it reads that. Every rank of a replica holds the same micro-batches, so each of them
knows what comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron.core import parallel_state
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection

#: Size of a tensor of states [L, B, H].
Size = tuple[int, ...]


class KnownShapes(P2PCommunicator):
    """Of one run of the schedule without interleaving, in which activations arrive in the order of the micro-batches,
    and so do gradients.

    sizes: of what the stages exchange of each micro-batch.
    """

    def __init__(self, config: Any, sizes: Sequence[Size]) -> None:
        super().__init__(parallel_state.get_pipeline_model_parallel_group(), config)
        self._activations, self._gradients = iter(sizes), iter(sizes)

    def _communicate_shapes(
        self, tensor_send_next: Any, tensor_send_prev: Any, recv_prev: bool, recv_next: bool
    ) -> tuple[Size, Size]:
        """In the place of Megatron's exchange: the sizes of the activation from the previous stage and of the gradient
        from the next one, where there are to be any."""
        return next(self._activations) if recv_prev else (), next(self._gradients) if recv_next else ()


def messages(config: Any, sizes: Sequence[Size]) -> dict[str, Any]:
    """What Megatron's schedule without interleaving takes so that its stages exchange no shapes.

    sizes: of the states of each micro-batch between two stages.
    """
    groups = ["tp", "cp", "embd", "pos_embd", "pp", "dp_cp"]  # those that it finds by itself, where it is given none
    return {
        "p2p_communicator": KnownShapes(config, sizes),
        "pg_collection": ProcessGroupCollection.use_mpu_process_groups(groups),
    }
