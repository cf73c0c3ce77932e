"""Reinforcement learning: gi_ppo.py holds the loop, every other file one of its stages."""

import gipo_mc.parallel.megatron  # noqa: F401  # before anything else imports Megatron-core
