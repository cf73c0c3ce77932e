"""Megatron-core as this package finds it: the version that is installed, and a machine without CUDA."""
