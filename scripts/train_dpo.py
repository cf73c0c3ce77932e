"""Train a policy on preference pairs against a frozen reference (DPO, conservative DPO or IPO: dpo.loss), if wanted
weighted by group (group-DPO: dpo.groups_from).

Without any argument: the built-in task, sized to the ranks and the device there are.
"""

from __future__ import annotations

import sys

from gipo_mc.run.command import run_command
from gipo_mc.supervised import dpo
from gipo_mc.tools import builtin

if __name__ == "__main__":
    sys.exit(run_command(str(__doc__), dpo.train, builtin=builtin.DPO))
