#!/usr/bin/env bash
# wandb 0.31.0: a script in offline mode that is killed.
#
# Expected: rows that run.log took are in the run's file: they were handed to a process of their own, wandb-core, which
#   outlives the script and notices that it is gone.
# Seen: rows wait in wandb-core's memory, for up to 15 seconds, until they are written. When its parent is killed it says
#   "parent process exited, terminating service process", "forced shutdown", and throws them away. After three seconds
#   of logging and a SIGKILL the file holds 7 bytes, its header; `wandb sync` has nothing to send.
# Why it matters: the last rows before an out-of-memory kill are those that people look for; and who resumes the run and
#   sends only later steps has a gap.
# Here: gipo_mc/run/trackers/weights_biases.py has it write every second (x_transaction_log_flush_interval), remembers
#   which steps are surely written, and sends the others again; metrics.jsonl has all of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q wandb==0.31.0 || { echo "pip could not install it."; exit 2; }
HOME="$folder" WANDB_MODE=offline env/bin/python -I - <<'PYTHON'
import signal
import subprocess
import sys
import time
from pathlib import Path

RUN = """
import os, signal, time, wandb
run = wandb.init(project="p", dir=".", settings=wandb.Settings(console="off", silent=True))
for step in range(30):
    run.log({"loss": 1.0 / (step + 1)}, step=step)
    time.sleep(0.1)
os.kill(os.getpid(), signal.SIGKILL)
"""
ended = subprocess.run([sys.executable, "-c", RUN])
if ended.returncode != -signal.SIGKILL:
    sys.exit("The script did not come to its end.")
time.sleep(5)
(file,) = Path().rglob("*.wandb")
print(f"{file.name}: {file.stat().st_size} bytes after 30 rows in three seconds and SIGKILL")
if file.stat().st_size != 7:
    sys.exit("Changed: some of the rows are in the file.")
print("As stated: all rows are lost.")
PYTHON
