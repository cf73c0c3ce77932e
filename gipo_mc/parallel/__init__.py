"""Megatron-core runtime: the same code on NCCL/CUDA and on gloo/CPU. Knows nothing of RLHF."""

import warnings

# TransformerEngine and Apex are options here, not conditions; scripts/doctor.py says what is missing and what for.
for _message in (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "full scope is deprecated",  # Megatron's own default of an option (CUDA graphs) that is not used here
):
    warnings.filterwarnings("ignore", message=_message)
