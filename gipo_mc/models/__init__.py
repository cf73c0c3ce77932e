"""Models on Megatron-core: families, a pipeline stage and its heads, weights from and to Hugging Face; no RLHF."""
