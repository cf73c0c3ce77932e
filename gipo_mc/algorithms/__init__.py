"""Pure functions on tensors: advantages, KL weights, PPO, group invariance, group inference and the other losses.

No file here reads configuration, talks to another rank or knows a model. Losses of a micro-batch are sums that the
caller's mini-batch-wide normalisers turn into shares of the mini-batch loss, so that no result depends on how a
mini-batch is split.
"""
