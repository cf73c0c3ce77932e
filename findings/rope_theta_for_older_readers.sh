#!/usr/bin/env bash
# transformers 5.23.0 writes, transformers 4.57.6 (the last 4.x here) reads: config.json and the rotary base.
#
# Expected: a Llama 3 config.json saved by version 5 and read by version 4 keeps its rotary base and scaling, or is
#   refused: the model_type is the same, the other sizes are read right, and config.json names the version that wrote it.
# Seen: version 5 writes rope_parameters and no longer rope_theta or rope_scaling; version 4 knows only those two, keeps
#   rope_parameters as an unknown attribute and takes its defaults. No error, no warning. The other way round is fine.
#       written by 5.23.0                     read by 4.57.6
#       llama    theta 500000 llama3 x 8      theta 10000.0 scaling None
#       mistral  theta 1000000 default        theta 10000.0 scaling not known
#       qwen2    theta 1000000 default        theta 10000.0 scaling None
#       qwen3    theta 1000000 default        theta 10000.0 scaling None
# Why it matters: training and serving are two environments, and the serving one is often the older. The weights load
#   without a missing key, and every position is rotated by the wrong angle: a policy that was trained well answers
#   badly, a reward model ranks badly, and the folder's files are the ones its training saved.
# Here: gipo_mc reads both forms (Family.shape in gipo_mc/models/families/base.py takes what transformers 5 makes of
#   them) and needs transformers >= 5. Whatever it saves has both forms, rope_theta and rope_scaling beside
#   rope_parameters (gipo_mc/models/hf_files.py), which both versions read alike.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 5.23.0 4.57.6; do
    "${PYTHON:-python3}" -m venv "env-$version"
    "env-$version/bin/pip" install -q "transformers==$version" || { echo "pip could not install them."; exit 2; }
done
export HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1

env-5.23.0/bin/python -I - <<'PYTHON'
import transformers
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

print(f"written by transformers {transformers.__version__}")
llama3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LlamaConfig(rope_parameters=llama3, max_position_embeddings=131072).save_pretrained("llama")
for config in (MistralConfig, Qwen2Config, Qwen3Config):
    plain = config(rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
    plain.save_pretrained(config.model_type)
for name in ("llama", "mistral", "qwen2", "qwen3"):
    rope = transformers.AutoConfig.from_pretrained(name).rope_parameters
    print(f"{name:8} theta {rope['rope_theta']:.0f} {rope['rope_type']} {'x 8' if 'factor' in rope else ''}")
PYTHON

env-4.57.6/bin/python -I - <<'PYTHON'
import sys

import transformers
from transformers import AutoConfig, LlamaConfig

print(f"read by transformers {transformers.__version__}")
kept = []
for name in ("llama", "mistral", "qwen2", "qwen3"):
    config = AutoConfig.from_pretrained(name)
    scaling = getattr(config, "rope_scaling", "not known")
    print(f"{name:8} theta {config.rope_theta} scaling {scaling}")
    if config.rope_theta != 10000.0 or scaling not in (None, "not known"):
        kept.append(name)
if kept:
    sys.exit(f"Changed: the rotary base of {', '.join(kept)} is now read (or written) in a way both versions know.")
scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
scaling |= {"original_max_position_embeddings": 8192}
LlamaConfig(rope_theta=500000.0, rope_scaling=scaling, max_position_embeddings=131072).save_pretrained("llama-of-4")
PYTHON

env-5.23.0/bin/python -I - <<'PYTHON'
import sys

from transformers import AutoConfig

rope = AutoConfig.from_pretrained("llama-of-4").rope_parameters
print("written by 4, read by 5:", rope)
if rope["rope_theta"] != 500000.0 or rope["rope_type"] != "llama3":
    sys.exit("Changed: version 5 no longer reads the rotary base that version 4 writes.")
print("As stated: version 4 reads version 5's config.json without a word and takes a rotary base of 10000.")
PYTHON
