#!/usr/bin/env bash
# Everything that wants a GPU, in less than 9 minutes: build with CUDA, doctor, CUDA tests, ways of execution (FP8, ...),
# bitwise repeats, a short GI-PPO, decoding, offload, benchmarks, compute-sanitizer, C++ tests. The result is a JSON file,
# benchmarks/results/gpu_<name>_<date>.json; a step that fails does not stop the later ones, and is named at the end.
#
#   scripts/gpu_check.sh [--out DIR] [--steps STEP ...] [--limit SECONDS] [--commit SHA] [--quick]
#
# Needs a driver, nvcc, and a Python with torch for CUDA (PYTHON=..., else the active one); a network only where build
# tools are missing. Exit code: 0 all passed, 1 a step did not, 2 there is no GPU to check.
case "${1:-}" in -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$(command -v python || command -v python3 || true)}"
if [ -z "$python" ] || ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "There is no GPU that torch can use here (python: ${python:-none}), and everything this checks needs one." >&2
    exit 2
fi
exec "$python" benchmarks/gpu/gpu_check.py --device cuda "$@"
