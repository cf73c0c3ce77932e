"""Megatron-core runtime: the same code on NCCL/CUDA and on gloo/CPU. Knows nothing of RLHF."""

import warnings

# TransformerEngine and Apex are options here, not conditions; scripts/doctor.py says what is missing and what for.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
