"""Say how a run stands, and end with its exit code. torchrun reduces every code but 0 to 1.

    python scripts/run_status.py runs/gi_ppo

`gipo-mc status` from a checkout.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("status"))
