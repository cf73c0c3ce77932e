"""Train a policy on preference pairs against a frozen reference (DPO, conservative DPO or IPO: dpo.loss), if wanted
weighted by group (group-DPO: dpo.groups_from).

Without any argument: the built-in task, sized to the ranks and the device there are.
"""

from __future__ import annotations

import sys

from gipo_mc.config import Config
from gipo_mc.run.command import run_command
from gipo_mc.tools import builtin


def work(config: Config) -> None:
    from gipo_mc.supervised.dpo import train  # torch and Megatron, once the configuration is known to be right

    train(config)


if __name__ == "__main__":
    sys.exit(run_command(str(__doc__), work, builtin=builtin.DPO, command="train_dpo"))
