"""Train a policy with Group-Invariant PPO, or with one of its baselines, controls and oracles (algorithm.name).

Without any argument: the built-in task, sized to the ranks and the device there are.
"""

from __future__ import annotations

import sys

from gipo_mc.rl import gi_ppo
from gipo_mc.run.command import run_command
from gipo_mc.tools import builtin

if __name__ == "__main__":
    sys.exit(run_command(str(__doc__), gi_ppo.train, builtin=builtin.GI_PPO))
