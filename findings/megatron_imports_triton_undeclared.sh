#!/usr/bin/env bash
# megatron-core 0.18.2 and 0.19.2 (torch 2.13.0): import megatron.core.pipeline_parallel without triton.
#
# Expected: what a package declares is enough to import it; megatron-core declares torch, numpy and packaging, and 0.16.1
#   and 0.17.1 (Python 3.12) import with these.
# Seen: since 0.18 ModuleNotFoundError: No module named 'triton'. The pipeline schedules import paged_stash, of mixtures
#   of experts, whose kernels import triton without a guard.
# Why it matters: torch for CUDA on Linux brings triton, so nobody there notices. torch's CPU build does not, and there
#   nothing of training can be imported: tests and laptops.
# Here: pyproject.toml asks for triton on Python 3.12 (TRITON in gipo_mc/parallel/megatron/versions.py).
# triton is taken out of an environment with pip's own torch, which leaves what the CPU build has. Needs Python 3.12.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 numpy packaging || { echo "pip could not install them."; exit 2; }
env/bin/pip uninstall -q -y triton
status=0
for version in 0.17.1 0.18.2 0.19.2; do
    env/bin/pip install -q --no-deps "megatron-core==$version" || { echo "pip could not install it."; exit 2; }
    said=imported
    env/bin/python -W ignore -c 'import megatron.core.pipeline_parallel' 2>said || said=$(tail -n 1 said)
    echo "$version: $said"
    case "$version: $said" in
    "0.17.1: imported" | 0.1[89].2:*"No module named 'triton'"*) ;;
    *) status=1 ;;
    esac
done
[ "$status" -eq 0 ] || echo "The behaviour changed."
exit "$status"
