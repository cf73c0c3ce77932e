#!/usr/bin/env bash
# megatron-core 0.16.1 (torch 2.13.0, CPU, one process, no TransformerEngine): selective recomputation.
#
# Expected: a module that a configuration may name is recomputed, or refused with a reason; `fp8=False` is no fp8.
# Seen: with recompute_modules=["layernorm"] the first forward pass ends in a NameError. The class that recomputes it,
#   CheckpointWithoutOutput(fp8=False), takes `fp8 is not None` for the answer, so its default means that fp8 is on, and
#   it asks TransformerEngine, whose failed import was passed over. With fp8=None it works:
#       recompute_modules=[]                  trains
#       recompute_modules=["core_attn"]       trains
#       recompute_modules=["layernorm"]       NameError: name 'FP8GlobalStateManager' is not defined
#       CheckpointWithoutOutput(fp8=None)     right
#       CheckpointWithoutOutput(fp8=False)    NameError: name 'FP8GlobalStateManager' is not defined
# Why it matters: the local layers do not need TransformerEngine, and neither the configuration nor the message leads
#   from a norm to fp8. Where TransformerEngine is installed nothing shows.
# Here: memory.recompute=selective recomputes "core_attn" only (gipo_mc/models/execution.py).
# The error and its cause were known from a run before the script was written; that fp8=None works was guessed before.
# The library asks for CUDA's random state and device: here the CPU's take their place, and nothing else is changed. In
# the source of 0.19.2 the line is the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 megatron-core==0.16.1 || { echo "pip could not install them."; exit 2; }
cat > recompute.py <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import random as megatron_random
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer import TransformerConfig

# The library asks for CUDA's random state and device: here the CPU's take their place. Nothing else is changed.
torch.cuda.current_device = lambda: torch.device("cpu")
megatron_random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
megatron_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
torch.cuda.get_rng_state, torch.cuda.manual_seed = torch.get_rng_state, torch.manual_seed


def step(modules):
    """One forward and backward pass of a small GPT model."""
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=2, use_cpu_initialization=True,
        hidden_dropout=0.0, attention_dropout=0.0,
        recompute_granularity="selective" if modules else None, recompute_modules=modules or None,
    )  # fmt: skip
    model = GPTModel(config, get_gpt_layer_local_spec(), vocab_size=32, max_sequence_length=8)
    tokens = torch.arange(8)[None]
    mask = torch.ones(1, 1, 8, 8).triu(1).bool()
    try:
        model(tokens, tokens, mask, labels=tokens).sum().backward()
    except NameError as error:
        return f"NameError: {error}"
    return "trains"


def checkpoint(**options):
    """The class alone, around an exponential."""
    checkpointed = CheckpointWithoutOutput(**options)
    x = torch.ones(2, requires_grad=True)
    try:
        made = checkpointed.checkpoint(torch.exp, x)
        loss = (made * made).sum()
        checkpointed.discard_output_and_register_recompute(loss)
        loss.backward()
    except NameError as error:
        return f"NameError: {error}"
    return "right" if torch.allclose(x.grad, 2 * (2 * x.detach()).exp()) else f"wrong: {x.grad}"


print(f"megatron-core {importlib.metadata.version('megatron-core')}, torch {torch.__version__}")
dist.init_process_group("gloo", init_method=f"file://{Path('store').resolve()}", rank=0, world_size=1)
parallel_state.initialize_model_parallel()
megatron_random.model_parallel_cuda_manual_seed(1)
error = "NameError: name 'FP8GlobalStateManager' is not defined"
seen = {f"recompute_modules={modules}": step(modules) for modules in ([], ["core_attn"], ["layernorm"])}
seen |= {f"CheckpointWithoutOutput(fp8={fp8})": checkpoint(fp8=fp8) for fp8 in (None, False)}
dist.destroy_process_group()
for what, found in seen.items():
    print(f"{what:37} {found}")
if list(seen.values()) != ["trains", "trains", error, "right", error]:
    sys.exit("The behaviour changed.")
print("As stated: fp8=False means True.")
PYTHON
env/bin/python -I -W ignore recompute.py
