"""The configuration: typed sections, loaded and checked once, before any process group starts."""

from gipo_mc.config.commands import TRAINERS, UNREAD, read_by, verb_of
from gipo_mc.config.data import DataConfig
from gipo_mc.config.environment import hide
from gipo_mc.config.help import describe, help_lines
from gipo_mc.config.layout import check_layout, wide_tensor
from gipo_mc.config.load import (
    as_yaml,
    changes,
    load_config,
    names_nothing,
    run_folder,
    saved_values,
    validate,
    values,
    written,
)
from gipo_mc.config.memory import MemoryConfig
from gipo_mc.config.names import check_name, check_regular, name_problem
from gipo_mc.config.precision import PrecisionConfig
from gipo_mc.config.reward import RewardConfig
from gipo_mc.config.rl import AlgorithmConfig, RolloutConfig
from gipo_mc.config.schema import (
    CheckpointConfig,
    Config,
    DPOConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    options,
    resume_rule,
)
from gipo_mc.config.yaml_text import check_yaml

__all__ = [
    "TRAINERS",
    "UNREAD",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Config",
    "DPOConfig",
    "DataConfig",
    "EvalConfig",
    "MemoryConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "TrackingConfig",
    "TrainConfig",
    "as_yaml",
    "changes",
    "check_layout",
    "check_name",
    "check_regular",
    "check_yaml",
    "describe",
    "help_lines",
    "hide",
    "load_config",
    "name_problem",
    "names_nothing",
    "options",
    "read_by",
    "resume_rule",
    "run_folder",
    "saved_values",
    "validate",
    "values",
    "verb_of",
    "wide_tensor",
    "written",
]
