"""Train a policy with Group-Invariant PPO, or with one of its baselines, controls and oracles (algorithm.name).

Without any argument: the built-in task, sized to the ranks and the device there are.

`gipo-mc train gi-ppo` from a checkout, and under torchrun.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("train", "gi-ppo"))
