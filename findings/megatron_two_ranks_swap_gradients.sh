#!/usr/bin/env bash
# megatron-core 0.16.1, and 0.19.2 alike (torch 2.13.0, CPU, two processes, gloo): the interleaved pipeline schedule on
#   two pipeline ranks, with the defaults of its configuration (overlap_p2p_comm=False, batch_p2p_comm=True).
#
# Expected: an activation arrives as an activation and a gradient as a gradient, or the layout is refused.
# Seen: each rank is handed the other's gradient as its input and the other's activation as its gradient. In the steady
#   state of the schedule one call of P2PCommunicator.send_forward_backward_recv_forward_backward sends both ways. With two
#   ranks the next and the previous one are the same, and the four messages have neither tags nor groups of their own:
#   they are matched in the order in which each side lists them (send previous, receive previous, send next, receive
#   next), so what is sent to "previous" meets what is received from "previous". Both have one shape: there is no error.
# Why it matters: a model trains with gradients that are wrong by orders of magnitude, and only the numbers tell.
#   Megatron-LM's training script asserts that there are more than two ranks ("multiple p2p sends and recvs between same 2
#   ranks per communication batch"); the library, which others build on, checks nothing.
# Here: gipo_mc sets overlap_p2p_comm=True and batch_p2p_comm=False with parallel.virtual_pipeline above 1, where each
#   call goes one way (tests/parallel/pipeline/test_interleaved.py compares every gradient).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 megatron-core==0.16.1 || { echo "pip could not install them."; exit 2; }
cat > two_ranks.py <<'PYTHON'
import importlib.metadata
import sys

import torch
import torch.distributed as dist
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

torch.cuda.current_device = lambda: torch.device("cpu")  # the library asks for CUDA's; nothing else is changed
torch.cuda.synchronize = lambda: None
dist.init_process_group("gloo")
rank = dist.get_rank()
config = ModelParallelConfig(
    pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2, pipeline_dtype=torch.float32
)
communicator = P2PCommunicator(dist.new_group([0, 1]), config)
activation, gradient = torch.full((2, 2, 2), 10.0 + rank), torch.full((2, 2, 2), 20.0 + rank)
received = communicator.send_forward_backward_recv_forward_backward(
    activation, gradient, recv_prev=True, recv_next=True, tensor_shape=(2, 2, 2)
)
got = [float(tensor.detach()[0, 0, 0]) for tensor in received]
other = 1 - rank
both = [None, None]
dist.all_gather_object(both, got)
dist.destroy_process_group()
if rank == 0:
    print(f"megatron-core {importlib.metadata.version('megatron-core')}, torch {torch.__version__}")
    for one, (first, second) in enumerate(both):
        print(f"rank {one}: activation {first:.0f} (sent: {11 - one}), gradient {second:.0f} (sent: {21 - one})")
    if both != [[21.0, 11.0], [20.0, 10.0]]:
        sys.exit("Changed: activations and gradients are no longer exchanged for each other.")
    print("As stated: each rank takes the other's gradient for its activation, and the reverse.")
PYTHON
OMP_NUM_THREADS=1 env/bin/python -W ignore -m torch.distributed.run --nproc-per-node 2 two_ranks.py
