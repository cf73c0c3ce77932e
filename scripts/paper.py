"""Make the paper's table of win, tie and lose: train, generate, judge, and write the pages, step by step.

    python scripts/paper.py --config configs/paper/tiny.yaml --plan

`gipo-mc paper` from a checkout.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("paper"))
