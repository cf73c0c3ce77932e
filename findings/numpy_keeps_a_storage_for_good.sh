#!/usr/bin/env bash
# torch 2.13.0, numpy 2.4.6 (CPU, one process): a CPU tensor that was looked at through `.numpy()` once.
#
# Expected: an array that shares a tensor's memory holds on to it while the array exists, and no longer.
# Seen: `tensor.numpy()`, of any part of it, marks the whole storage as one that cannot be resized, and the mark stays:
#   with the array gone, `untyped_storage().resize_(0)` is refused. np.from_dlpack shares memory, too, and leaves no
#   mark. First a plain tensor, then a weight of a model under FSDP2, which frees gathered weights by resizing them,
#   seen in a forward hook; nothing keeps an array:
#       np.from_dlpack(t).sum()    freed                                             trained
#       t.clone().numpy().sum()    freed                                             trained
#       t.numpy().sum()            "Trying to resize storage that is not resizable"  the same error
#       np.asarray(t).sum()        the same error                                    the same error
#       t[5:6].numpy().sum()       the same error                                    the same error
# Why it matters: freeing storages in place is how weights leave a device and come back while tensors, views and the
#   optimizer keep pointing at them (FSDP, offloading). One line that hands a weight to numpy ends that, later and
#   elsewhere, and only on the CPU: from CUDA the values are copied to the host first.
# Here: memory.offload moves bytes without numpy (FileCopy in gipo_mc/parallel/memory/movers.py), and a checkpoint of
#   what may leave is made of copies (Engine.snapshot).
# That the mark is set and stays was known before the script was written; that a single value is enough, and what FSDP2
# and dlpack do, was guessed before its first run, and was so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 numpy==2.4.6 || { echo "pip could not install them."; exit 2; }
cat > storages.py <<'PYTHON'
import gc
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

WAYS = {
    "tolist": lambda tensor: tensor.tolist(),
    "item": lambda tensor: tensor[0].item(),
    "print": lambda tensor: repr(tensor),
    "dlpack": lambda tensor: np.from_dlpack(tensor).sum(),
    "clone": lambda tensor: tensor.clone().numpy().sum(),
    "numpy": lambda tensor: tensor.numpy().sum(),
    "asarray": lambda tensor: np.asarray(tensor).sum(),
    "one value": lambda tensor: tensor[5:6].numpy().sum(),
}


def freed(look):
    """Can the memory be given back after this look at the tensor, of which nothing is left?"""
    tensor = torch.arange(1000.0)
    look(tensor)
    gc.collect()
    try:
        tensor.untyped_storage().resize_(0)
    except RuntimeError as error:
        return str(error)
    return "freed"


def trained(look):
    """One step of FSDP2 on the CPU, with a look at a weight in a forward hook."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].register_forward_hook(lambda module, *_: look(module.weight.detach().flatten()) and None)
    for layer in model:
        fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    try:
        model(torch.ones(2, 8)).sum().backward()
    except RuntimeError as error:
        return str(error)
    return "trained"


print("torch", torch.__version__, "numpy", np.__version__)
refused = "Trying to resize storage that is not resizable"
dist.init_process_group("gloo", init_method=f"file://{Path('store').resolve()}", rank=0, world_size=1)
changed = False
for name, look in WAYS.items():
    seen = (freed(look), trained(look))
    pinned = name in ("numpy", "asarray", "one value")
    print(f"{name:10} {seen[0]:47} {seen[1]}", flush=True)
    changed |= seen != ((refused, refused) if pinned else ("freed", "trained"))
dist.destroy_process_group()
if changed:
    sys.exit("The behaviour changed.")
print("As stated: what was once seen through numpy() cannot be freed.")
PYTHON
env/bin/python -I -W ignore storages.py
