"""Megatron-core runtime: the same code on NCCL/CUDA and on gloo/CPU. Knows nothing of RLHF."""
