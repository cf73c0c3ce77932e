"""The configuration: typed sections, loaded and checked once, before any process group starts."""

from gipo_mc.config.help import MARKS_MEAN, describe
from gipo_mc.config.layout import check_layout
from gipo_mc.config.load import changes, load_config, names_nothing, run_folder, save_config, validate, values
from gipo_mc.config.schema import (
    AlgorithmConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    DPOConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
    options,
    resume_rule,
)

__all__ = [
    "MARKS_MEAN",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Config",
    "DPOConfig",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RolloutConfig",
    "RunConfig",
    "TrainConfig",
    "changes",
    "check_layout",
    "describe",
    "load_config",
    "names_nothing",
    "options",
    "resume_rule",
    "run_folder",
    "save_config",
    "validate",
    "values",
]
