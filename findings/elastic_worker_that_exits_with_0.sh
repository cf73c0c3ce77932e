#!/usr/bin/env bash
# torch 2.13.0 (Linux, CPU): a worker function under torch.distributed.elastic that ends its process with exit code 0.
#
# Expected: start_processes(...).wait() ends when the worker has ended, as it does after a return, sys.exit(0), an
#   exception or os._exit(1).
# Seen: after os._exit(0) it waits for ever, with fork and with spawn: a worker counts as done by the value that it put
#   into a queue, and an exit code of 0 is no failure. launch_agent, on top of it, keeps the job "running".
#       the worker     fork                     spawn
#       returns 7      {0: 7}                   {0: 7}
#       sys.exit(0)    {0: None}                {0: None}
#       os._exit(1)    failed with exit code 1  failed with exit code 1
#       os._exit(0)    waiting after 10 s       waiting after 10 s, and the process is gone
# Why it matters: os._exit(0) is how workers leave when the ordinary end hangs (threads of CUDA, NCCL or a data loader),
#   at the end of a training that went well. The job then holds its GPUs until somebody looks. A worker that is a script
#   (torchrun train.py) is another class and ends.
# Here: gipo_mc starts its workers as scripts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 || { echo "pip could not install it."; exit 2; }

cat > workers.py <<'PYTHON'
import os
import sys

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes


def returns():
    return 7


def exits():
    sys.exit(0)


def leaves(code):
    os._exit(code)


def result(how, function, *arguments):
    """What the agent learns of one worker within ten seconds, and whether the worker is still there."""
    workers = start_processes("worker", function, {0: arguments}, {0: {}}, DefaultLogsSpecs(), start_method=how)
    (pid,) = workers.pids().values()
    found = workers.wait(timeout=10)
    if found is None:
        return "waiting" + (" for a process that is gone" if not os.path.exists(f"/proc/{pid}/exe") else "")
    if found.failures:
        return f"failed with exit code {found.failures[0].exitcode}"
    return str(found.return_values)


if __name__ == "__main__":
    print("torch", torch.__version__)
    wanted = {
        (returns,): "{0: 7}",
        (exits,): "{0: None}",
        (leaves, 1): "failed with exit code 1",
        (leaves, 0): "waiting for a process that is gone",
    }
    for how in ("fork", "spawn"):
        for worker, answer in wanted.items():
            name = f"{worker[0].__name__}({', '.join(map(str, worker[1:]))})"
            seen = result(how, *worker)
            print(f"{how:6} {name:10} {seen}", flush=True)
            if seen != answer:
                sys.exit(f"Changed: it was {answer!r}.")
    print("As stated: a worker that leaves by os._exit(0) is waited for for ever.")
PYTHON
env/bin/python -W ignore workers.py 2> errors || { tail -n 5 errors; exit 1; }
