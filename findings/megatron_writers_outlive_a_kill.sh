#!/usr/bin/env bash
# megatron-core 0.16.1 (torch 2.13.0, Linux, CPU, one process): SIGKILL in the middle of dist_checkpointing.save.
#
# Expected: what a process holds, a lock on its run folder above all, is free once it is gone.
# Seen: the save forks two writers, which inherit every descriptor. When they are done they put their results into one
#   pipe that only the killed process read and that they keep open themselves. Results of few tensors fit into the
#   pipe, and the writers leave; those of many do not (64 KiB: some 400 tensors), and they wait in the write for ever:
#          8 tensors of 50 MB     the lock is free after 1.2 s
#       2000 tensors of 0.2 MB    the lock is held after 20 s by a writer that waits in anon_pipe_write
#   The process that holds megatron's queue of results (a multiprocessing Manager) outlives the kill in both cases.
# Why it matters: the out-of-memory killer and the end of a grace time are SIGKILLs, and a save is when memory is
#   highest. The next start finds the folder locked by a job that is gone; writers also keep the weights in memory, and
#   a pipe to `tee` or to a launcher open. A model of test size never shows it.
# Here: gipo_mc writes the files itself, in threads, or in a process that dies with its rank and keeps no descriptor
#   (gipo_mc/parallel/saving).
# torch.cuda.synchronize, which a save calls even without a GPU, is replaced. Needs 0.5 GB of disk and 1 GB of memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 megatron-core==0.16.1 psutil || { echo "pip could not install them."; exit 2; }

cat > save.py <<'PYTHON'
import fcntl
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor

if __name__ == "__main__":
    folder, tensors = Path(sys.argv[1]), int(sys.argv[2])
    lock = open(folder / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    torch.cuda.synchronize = lambda: None
    dist.init_process_group("gloo", init_method=f"file://{folder.resolve()}/store", rank=0, world_size=1)
    values = 100_000_000 // tensors  # 400 MB in all
    state = {name: ShardedTensor.from_rank_offsets(name, torch.zeros(values)) for name in map(str, range(tensors))}
    (folder / "checkpoint").mkdir()
    dist_checkpointing.save(state, str(folder / "checkpoint"))
    dist.destroy_process_group()
PYTHON

env/bin/python -I -W ignore - <<'PYTHON'
import fcntl
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def free(path):
    with open(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def holders(group, path):
    """{process of this group with the file open: what its threads wait in}."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == group:
                if any(os.path.samefile(fd, path) for fd in (entry / "fd").iterdir() if fd.exists()):
                    found[int(entry.name)] = [(task / "wchan").read_text() for task in (entry / "task").iterdir()]
        except (ProcessLookupError, FileNotFoundError):
            pass  # it left while we looked
    return found


def kill_a_save(tensors, patience):
    """Whether the lock is free again within `patience` seconds of the kill."""
    folder = Path(str(tensors))
    folder.mkdir()
    command = [sys.executable, "-I", "-W", "ignore", "save.py", str(folder), str(tensors)]
    with open(folder / "errors", "w") as errors:
        saver = subprocess.Popen(command, start_new_session=True, stderr=errors)
    try:
        while not list(folder.glob("checkpoint/*.distcp")):
            if saver.poll() is not None:
                sys.exit(f"The save ended before it began to write:\n{(folder / 'errors').read_text()}")
            time.sleep(0.005)
        saver.kill()
        if saver.wait() != -signal.SIGKILL:
            sys.exit("The save ended before the signal.")
        start = time.monotonic()
        while not (freed := free(folder / "lock")) and time.monotonic() < start + patience:
            time.sleep(0.2)
        waited = time.monotonic() - start
        print(f"{tensors:5} tensors: the lock is {'free' if freed else 'held'} after {waited:.1f} s", end="  ")
        print(holders(saver.pid, folder / "lock"))
        return freed
    finally:
        try:
            os.killpg(saver.pid, signal.SIGKILL)  # all that this save left behind
        except ProcessLookupError:
            pass
        shutil.rmtree(folder)


print("megatron-core", importlib.metadata.version("megatron-core"))
if not kill_a_save(8, 60):
    sys.exit("Changed: the lock stays held with few tensors, too.")
if kill_a_save(2000, 20):
    sys.exit("Changed: the lock is free again after a kill in a save of many tensors.")
print("As stated: after a kill in a save of many tensors its writers stay, and with them the lock.")
PYTHON
