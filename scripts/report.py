"""Build one self-contained HTML report of runs, of an evaluation, or of both.

    python scripts/report.py runs/ppo runs/gi_ppo --out compare.html

`gipo-mc report` from a checkout.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("report"))
