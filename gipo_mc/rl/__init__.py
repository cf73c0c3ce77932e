"""Reinforcement learning: gi_ppo.py holds the loop, every other file one of its stages."""
