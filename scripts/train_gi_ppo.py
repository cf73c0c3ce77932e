"""Train a policy with Group-Invariant PPO, or with one of its baselines, controls and oracles (algorithm.name).

Without any argument: the built-in task, sized to the ranks and the device there are.
"""

from __future__ import annotations

import sys

from gipo_mc.run.command import run_command
from gipo_mc.tools.builtin import gi_ppo_base, train_gi_ppo

if __name__ == "__main__":
    sys.exit(run_command(str(__doc__), train_gi_ppo, builtin=gi_ppo_base))
