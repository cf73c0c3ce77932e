"""SFT, reward model and DPO: one loop, and a task in a file of its own for each."""

import gipo_mc.parallel.megatron  # noqa: F401  # before anything else imports Megatron-core
