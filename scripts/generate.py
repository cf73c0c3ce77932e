"""Sample from a checkpoint: a Hugging Face folder, a run, or one checkpoint of a run.

    python scripts/generate.py model.policy=runs/gi_ppo --prompt "Say something kind."
    torchrun --nproc-per-node 2 scripts/generate.py model.policy=FOLDER parallel.tensor=2 data.evaluation=[test.jsonl]

`gipo-mc generate` from a checkout.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("generate"))
