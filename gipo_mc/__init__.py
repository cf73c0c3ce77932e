"""gipo_mc: Group-Invariant PPO for Llama models on Megatron-core (Zheng et al., arXiv 2310.11971)."""

__version__ = "0.1.0"
