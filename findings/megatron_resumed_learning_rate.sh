#!/usr/bin/env bash
# megatron-core 0.16.1 (torch 2.13.0): the learning rate of a run that continues with another one.
#
# Expected: OptimizerParamScheduler(override_opt_param_scheduler=True) is there for this: the new maximum counts.
# Seen: get_lr looks for max_lr and min_lr in the optimizer's groups of parameters first. get_megatron_optimizer puts them
#   there, and Optimizer.load_state_dict puts those of the checkpoint in their place: the old rate goes on, without a
#   word. (Since 0.19 groups are found by max_lr and min_lr, and loading raises "Could not find
#   parameter group with key".)
# Why it matters: a run is restarted with a lower rate because it diverges, and goes on with the higher one.
# Here: _keep_rates in gipo_mc/parallel/engine.py (tests/parallel/test_engine_kinds.py, test_a_schedule_is_...).
# torch's AdamW stands for Megatron's optimizer, with the groups that get_megatron_optimizer makes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 megatron-core==0.16.1 || { echo "pip could not install them."; exit 2; }

cat > resume.py <<'PYTHON'
import sys

import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler


def made(lr):
    group = {"params": [torch.nn.Parameter(torch.zeros(1))], "max_lr": lr, "min_lr": 0.0, "wd_mult": 1.0, "lr_mult": 1.0}
    optimizer = torch.optim.AdamW([group], lr=lr)
    scheduler = OptimizerParamScheduler(
        optimizer, init_lr=lr, max_lr=lr, min_lr=0.0, lr_warmup_steps=0, lr_decay_steps=10, lr_decay_style="constant",
        start_wd=0.0, end_wd=0.0, wd_incr_steps=10, wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False, override_opt_param_scheduler=True,
    )
    return optimizer, scheduler


before = made(1e-2)
now = made(1e-3)
for new, old in zip(now, before):
    new.load_state_dict(old.state_dict())
now[1].step(increment=1)
rate = now[0].param_groups[0]["lr"]
print(f"checkpoint 0.01, asked for 0.001, used {rate}")
sys.exit(0 if rate == 1e-2 else 1)
PYTHON

env/bin/python -W ignore resume.py || { echo "The behaviour changed."; exit 1; }
