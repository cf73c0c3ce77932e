"""gipo_mc: Group-Invariant PPO for Llama, Mistral and Qwen models on Megatron-core (Zheng et al., arXiv 2310.11971)."""

import importlib
import logging
import warnings

__version__ = "0.2.0"

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
# Of Megatron's distributed optimizer, which clears the gradients of its shards: views of parameters, no leaves.
warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf", module="megatron")

# torch, where there is a CUDA toolkit and no GPU, of a module for building extensions that Megatron (>= 0.19) imports.
logging.getLogger("torch.utils.cpp_extension").addFilter(
    lambda record: "No CUDA runtime is found" not in str(record.msg)
)

#: What other programs may rely on (docs/library.md), and where it stands. It is imported when it is first asked for:
#: `import gipo_mc` itself is cheap, and commands that need no torch never load it.
_PUBLIC = {
    "GipoError": "gipo_mc.errors",
    "Message": "gipo_mc.types",
    "Sample": "gipo_mc.types",
    "load_policy": "gipo_mc.api.policy",
    "Policy": "gipo_mc.api.policy",
    "Generation": "gipo_mc.api.policy",
    "load_reward": "gipo_mc.api.reward_model",
    "RewardModel": "gipo_mc.api.reward_model",
    "train": "gipo_mc.api.training",
    "train_sft": "gipo_mc.api.training",
    "train_reward": "gipo_mc.api.training",
    "train_dpo": "gipo_mc.api.training",
    "read_run": "gipo_mc.api.runs",
    "Run": "gipo_mc.api.runs",
    "group_objective": "gipo_mc.ops.group_objective",
    "group_variance": "gipo_mc.ops.group_objective",
    "GroupObjective": "gipo_mc.ops.results",
    "GroupVariance": "gipo_mc.ops.results",
    "kl_weights": "gipo_mc.algorithms.kl",
}
__all__ = ["__version__", "errors", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module("gipo_mc.errors")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gipo_mc' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    try:
        found = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "gipo_mc"):
            raise
        needs = "torch" if package == "torch" else "what `pip install -e .`, without --no-deps, installs"
        raise ModuleNotFoundError(
            f"gipo_mc.{name} needs {package}, which is not installed here. Install {needs} (docs/library.md).",
            name=error.name,
        ) from error
    return found  # type: ignore[no-any-return]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
