#!/usr/bin/env bash
# megatron-core 0.16.1 (torch 2.13.0, CPU, one process): vocab_parallel_cross_entropy and the logits it is given.
#
# Expected: a function that returns a loss leaves its argument alone, or changes it in every dtype alike.
# Seen: float32 logits hold the softmax probabilities afterwards; bfloat16 logits are unchanged, because the function
#   first converts them to float32, which copies bfloat16 and hands float32 back as it is. The loss is right in both.
#   Autograd does not object when the logits are used afterwards, so their entropy, too, is one of the wrong numbers:
#       float32   logits [2.0, 4.0, 6.0] -> [0.0159, 0.1173, 0.8668]   loss 0.1429   entropy 0.4411 -> 1.0194
#       bfloat16  logits [2.0, 4.0, 6.0] -> [2.0, 4.0, 6.0]            loss 0.1429   entropy 0.4411 -> 0.4411
#   (before the loss -> after it). It needs no GPU and no tensor parallelism.
# Why it matters: PPO takes the log-probability and the entropy (or a KL divergence) of a token from the same logits.
#   In that order, in float32, the bonus and its gradient are those of another distribution; the same code in bfloat16 is
#   right, so the float32 run that was to be the careful check is the one that is wrong.
# Here: gipo_mc does not call it. gipo_mc.ops.token_statistics gives both numbers from one read of the logits and never
#   writes them in the forward pass; only its backward pass may, on request (inplace_backward), and then autograd
#   refuses a second use (tests/ops/test_token_statistics.py, test_inplace_backward_with_a_second_consumer_fails_loudly).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 megatron-core==0.16.1 || { echo "pip could not install them."; exit 2; }
env/bin/python -I -W ignore - <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

print(f"megatron-core {importlib.metadata.version('megatron-core')}, torch {torch.__version__}")
dist.init_process_group("gloo", init_method=f"file://{Path('store').resolve()}", rank=0, world_size=1)
parallel_state.initialize_model_parallel()


def entropy(logits):
    return torch.distributions.Categorical(logits=logits.float()).entropy()


changed = {}
for dtype in (torch.float32, torch.bfloat16):
    source = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=dtype, requires_grad=True)  # [sequence, batch, vocabulary]
    logits = source * 2
    before, entropy_before = logits.detach().clone(), entropy(logits).item()
    loss = vocab_parallel_cross_entropy(logits, torch.tensor([[2]]))
    after, entropy_after = logits.detach().clone(), entropy(logits)
    (loss.sum() - 0.01 * entropy_after.sum()).backward()  # no complaint
    numbers = [[round(x, 4) for x in values.flatten().tolist()] for values in (before, after)]
    name = str(dtype).removeprefix("torch.")
    print(f"{name:9} logits {numbers[0]} -> {numbers[1]}  loss {loss.item():.4f}", end="  ")
    print(f"entropy {entropy_before:.4f} -> {entropy_after.item():.4f}")
    changed[name] = not torch.equal(before, after)
    if abs(loss.item() - 0.1429) > 1e-3:
        sys.exit(f"Changed: the loss in {name} is {loss.item():.4f}, not 0.1429.")
    if changed[name] and not torch.allclose(after, before.softmax(-1)):
        sys.exit(f"Changed: the logits in {name} are overwritten, but not by their softmax.")
dist.destroy_process_group()
if changed != {"float32": True, "bfloat16": False}:
    sys.exit(f"Changed: whether the logits are overwritten is now {changed}.")
print("As stated: the loss overwrites float32 logits by their softmax and leaves bfloat16 logits alone.")
PYTHON
