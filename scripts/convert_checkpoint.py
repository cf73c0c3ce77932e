"""Convert between Hugging Face folders and checkpoints of this package, and prove a conversion right.

    python scripts/convert_checkpoint.py --check FOLDER
    torchrun --nproc-per-node 4 scripts/convert_checkpoint.py --check FOLDER --tensor 2 --pipeline 2

`gipo-mc convert` from a checkout.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("convert"))
