"""Model families: a Hugging Face config in, Megatron flags and a table of tensors out; one file each."""
