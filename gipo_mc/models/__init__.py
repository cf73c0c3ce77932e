"""Llama on Megatron-core: one pipeline stage with its heads, weights from and to Hugging Face. Knows nothing of RLHF."""
