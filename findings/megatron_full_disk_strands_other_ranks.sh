#!/usr/bin/env bash
# megatron-core 0.16.1 (torch 2.13.0, CPU, gloo, two ranks): a full disk in dist_checkpointing.save.
#
# Expected: a save that fails on one rank raises on all of them. save_state_dict_async_finalize says so itself:
#   "Broadcast failure status to all ranks to raise exceptions everywhere if needed."
# Seen: that holds for the files of weights and not for the index, .metadata, which rank 0 writes between the two
#   collectives. Rank 0 raises out of the write; the others wait in the broadcast that it never reaches, and then raise
#   an error that names a peer and a time, and neither the disk nor the checkpoint:
#       full when        rank 0                                rank 1
#       rank 0's shard   CheckpointException                   CheckpointException at once
#       the index        OSError: No space left on device      RuntimeError: Timed out, 15 s (the time-out) later
# Why it matters: a caller that catches OSError on rank 0 ("could not save, going on") runs one collective ahead of the
#   others. One that does not catch it and is not watched by a launcher leaves them waiting, 30 minutes by default.
#   Whoever reads the log of another rank looks for a network fault.
# Here: gipo_mc writes shards and index itself, and the ranks agree after each (all_or_fail and on_main_or_fail in
#   gipo_mc/parallel/sharded_files.py; tests/run/test_saving.py, test_a_full_disk_is_an_error_on_every_rank_...).
# A link to /dev/full is the full disk. torch.cuda.synchronize and current_device, which a save calls without a GPU,
# too, are replaced.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 megatron-core==0.16.1 psutil || { echo "pip could not install them."; exit 2; }

cat > full.py <<'PYTHON'
import importlib.metadata
import multiprocessing
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor

TIME_OUT = 15  # seconds


def save(rank, folder, raised, both_done):
    torch.cuda.synchronize = lambda: None
    torch.cuda.current_device = lambda: "cpu"
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=TIME_OUT))
    state = {"weight": ShardedTensor.from_rank_offsets("weight", torch.zeros(4), (0, rank, 2))}
    try:
        dist_checkpointing.save(state, str(folder / "checkpoint"))
        raised.put((rank, "nothing", "", time.time()))
    except BaseException as error:
        raised.put((rank, type(error).__name__, str(error), time.time()))
    both_done.wait(4 * TIME_OUT)  # as a rank does that handles the error; its end would break the wait of the other


def full_where(name):
    """[(exception, text, seconds after the first one)] of rank 0 and 1."""
    folder = Path(name.strip(".")).resolve()
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / name).symlink_to("/dev/full")
    context = multiprocessing.get_context("spawn")
    raised, both_done = context.Queue(), context.Event()
    ranks = [context.Process(target=save, args=(rank, folder, raised, both_done)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    seen = sorted(raised.get(timeout=300) for _ in ranks)
    both_done.set()
    for rank in ranks:
        rank.join()
    first = min(when for *_, when in seen)
    for rank, error, text, when in seen:
        print(f"{name}  rank {rank}  {error} {when - first:.0f} s after the first: {text.strip().splitlines()[-1][-90:]}")
    return [(error, text, when - first) for _, error, text, when in seen]


if __name__ == "__main__":
    print("megatron-core", importlib.metadata.version("megatron-core"))
    shard = full_where("__0_0.distcp")
    if any(error != "CheckpointException" or late > TIME_OUT / 2 for error, _, late in shard):
        sys.exit("Changed: a shard that cannot be written does not raise CheckpointException on both ranks at once.")
    (error, _, _), (other, text, late) = full_where(".metadata.tmp")
    if error != "OSError" or other != "RuntimeError" or "Timed out" not in text or late < TIME_OUT - 2:
        sys.exit("Changed: an index that cannot be written no longer leaves the other rank waiting for the time-out.")
    print("As stated: where the index cannot be written, the other rank waits for the time-out.")
PYTHON
env/bin/python -W ignore full.py
