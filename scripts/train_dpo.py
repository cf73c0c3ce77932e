"""Train a policy on preference pairs against a frozen reference (DPO, conservative DPO or IPO: dpo.loss), if wanted
weighted by group (group-DPO: dpo.groups_from).

Without any argument: the built-in task, sized to the ranks and the device there are.

`gipo-mc train dpo` from a checkout, and under torchrun.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("train", "dpo"))
