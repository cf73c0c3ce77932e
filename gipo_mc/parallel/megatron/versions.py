"""What differs between the versions of Megatron-core that this package runs on.

All other code is written for every version of `SUPPORTED`. Each difference names the first version that has it, what it
is, and a line by which it is seen in Megatron's source. `tests/parallel/megatron/test_versions.py` looks for that line
in the version that is installed, and fails where a difference no longer divides the supported versions: then this file
has code that nothing reaches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron.core.package_info import __version__
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from packaging.version import InvalidVersion, Version

#: As in pyproject.toml.
SUPPORTED = ">=0.16.1,<0.20"
INSTALLED = Version(__version__).base_version


def minor(version: str) -> tuple[int, ...]:
    """(0, 19) of "0.19.2", "0.19.0rc1" or "0.19": what this package tells apart."""
    return Version(version).release[:2]


@dataclass(frozen=True)
class Difference:
    """Something that Megatron-core does since version `since`, for a reason to know it.

    module, line: a text that the source of this module of Megatron has since then, and not before.
    """

    since: str
    module: str
    line: str
    reason: str

    @property
    def here(self) -> bool:
        """Does the installed version have it?"""
        return minor(INSTALLED) >= minor(self.since)


MLP_BUILDER = Difference(
    "0.18",
    "megatron.core.transformer.mlp",
    "def as_mlp_submodule(",
    "A layer calls its `mlp` field with all arguments of a layer; a ModuleSpec there is put into one such call, with a "
    "warning for each layer.",
)
TRITON = Difference(
    "0.18",
    "megatron.core.pipeline_parallel.schedules",
    "moe.paged_stash import",
    "The schedules import triton through paged_stash, and Megatron-core does not declare it: pyproject.toml does.",
)
CURRENT_STREAM = Difference(
    "0.19",
    "megatron.core.distributed.param_and_grad_buffer",
    "current_stream = torch.cuda.current_stream()",
    "Each synchronisation of gradients asks for the CUDA stream, used or not: the CPU adapter answers.",
)
GPT_NOTICE = Difference(
    "0.19",
    "megatron.core.models.gpt.gpt_model",
    "GPTModel IS DEPRECATED",
    "Said for each model. Its successor, HybridModel, needs TransformerEngine, and is not there before 0.18.",
)
LAYOUT_NOTICE = Difference(
    "0.18",
    "megatron.core.distributed.distributed_data_parallel",
    "full_param_layout not provided",
    "Said for each model with the distributed optimizer, whose layout of parameters it works out itself, as before.",
)
TOOLKIT_NOTICE = Difference(
    "0.19",
    "megatron.core.tensor_parallel.random",
    "from torch.utils.cpp_extension import",
    "torch says there that a CUDA toolkit has no GPU: gipo_mc/__init__.py keeps that from the console.",
)
MIMO_NOTICE = Difference(
    "0.19",
    "megatron.core.optimizer",
    "models.mimo.model.base import MimoModel",
    "Each optimizer imports a multimodal model, which warns: gipo_mc/__init__.py keeps that from the console.",
)

DIFFERENCES = {
    "MLP_BUILDER": MLP_BUILDER,
    "TRITON": TRITON,
    "CURRENT_STREAM": CURRENT_STREAM,
    "GPT_NOTICE": GPT_NOTICE,
    "LAYOUT_NOTICE": LAYOUT_NOTICE,
    "TOOLKIT_NOTICE": TOOLKIT_NOTICE,
    "MIMO_NOTICE": MIMO_NOTICE,
}


def reads(writer: Any) -> bool:
    """Is what version `writer` wrote continued exactly by the one that is installed? Any of its own minor version or an
    earlier one; a text that is no version counts as a later one."""
    try:
        return minor(writer) <= minor(INSTALLED)
    except (InvalidVersion, TypeError):
        return False


def mlp(submodules: MLPSubmodules) -> Callable[..., MLP] | ModuleSpec:
    """The `mlp` field of a layer's submodules."""
    if MLP_BUILDER.here:
        return partial(MLP.as_mlp_submodule, submodules=submodules)
    return ModuleSpec(module=MLP, submodules=submodules)


def keep_notices_to_developers() -> None:
    """Keep what Megatron logs about its own plans from the user's console; other records pass. Idempotent."""
    for notice in (GPT_NOTICE, LAYOUT_NOTICE):
        logger = logging.getLogger(notice.module)
        if notice.here and not any(isinstance(known, _Without) for known in logger.filters):
            logger.addFilter(_Without(notice.line))


class _Without(logging.Filter):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()
