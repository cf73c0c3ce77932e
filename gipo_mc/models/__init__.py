"""Llama on Megatron-core: a pipeline stage and its heads, weights from and to Hugging Face; no RLHF here."""
