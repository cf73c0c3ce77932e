"""Reward hacking, seen: what the responses of an iteration show of it, in metrics, in words and in examples."""
