"""What a run will need, before anything starts: memory by rank and phase, disk, communication, time.

    python scripts/plan.py --config configs/paper/hh_rl.yaml --gpus 8 --gpu h100

`gipo-mc plan` from a checkout.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("plan"))
