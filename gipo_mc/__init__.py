"""gipo_mc: Group-Invariant PPO for Llama, Mistral and Qwen models on Megatron-core (Zheng et al., arXiv 2310.11971)."""

import logging
import warnings

__version__ = "0.1.0"

# TransformerEngine and Apex are options here, not conditions; gipo-mc doctor says what is missing and what for.
for _message in (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "When using (async grad allreduce|sequence parallelism)",  # of the order of CUDA streams
    "`torch.distributed.(all_gather_into|reduce_scatter)_tensor` is deprecated",  # torch >= 2.13, of calls in Megatron
    "Please use DTensor instead",  # torch, of the sharded tensors in Megatron's checkpoints
    "`load_state_dict` is deprecated",  # torch, of a call in Megatron's checkpoints
    "full scope is deprecated",  # Megatron's own default of an option (CUDA graphs) that is not used here
    "MimoModelConfig is experimental",  # a class that Megatron (>= 0.19) imports for each optimizer
):
    warnings.filterwarnings("ignore", message=_message)

# torch, where there is a CUDA toolkit and no GPU, of a module for building extensions that Megatron (>= 0.19) imports.
logging.getLogger("torch.utils.cpp_extension").addFilter(
    lambda record: "No CUDA runtime is found" not in str(record.msg)
)
