"""`python -m gipo_mc` is `gipo-mc`; under torchrun: `torchrun --nproc-per-node 4 -m gipo_mc train gi-ppo`."""

from __future__ import annotations

import sys

from gipo_mc.tools.command import main

if __name__ == "__main__":
    sys.exit(main())
