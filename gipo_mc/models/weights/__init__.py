"""Weights: how Megatron's parameters map to Hugging Face tensors, loading, export, and the proof of both."""
