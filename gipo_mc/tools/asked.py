"""Is a model named, and something that it is to respond to? Asked before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from gipo_mc.config import Config
from gipo_mc.errors import ConfigError


def check_asked(config: Config, texts: Sequence[str] = (), remedy: str = "") -> None:
    """Raises ConfigError where model.policy is empty, or neither texts nor data are given. remedy: how the caller takes
    the data; "": as gipo-mc generate does."""
    if not config.model.policy:
        raise ConfigError(
            "No model is named: add model.policy=FOLDER, a Hugging Face folder, a run or one of a run's checkpoints."
        )
    if not texts and not config.data.evaluation and not config.data.prompts:
        how = "give --prompt TEXT, or files with data.evaluation=[FILE] or data.prompts=[FILE]"
        raise ConfigError(f"There is nothing to respond to: {remedy or how}.")
