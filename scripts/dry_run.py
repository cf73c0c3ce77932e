"""A start without its GPUs: builds every kind of rank on tensors without storage, and steps the schedules.

    python scripts/dry_run.py --config configs/paper/hh_rl.yaml --gpus 8 --without-files

One process, no GPU, no weights: the real modules, optimizers, process groups and schedules of a rank of each stage,
compared with the plan. Fails on what a start of so many ranks would fail on. Exit code 0: it would start; 2: it would
not, with the reasons. docs/planning.md has the rest.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("dry-run"))
