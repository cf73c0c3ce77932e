"""What shows the metrics of a run beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow (docs/trackers.md)."""

from __future__ import annotations

import importlib.util

from gipo_mc.config import Config
from gipo_mc.errors import ConfigError

#: Name in run.trackers -> the package that it takes, which is also that of the extra.
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}


def check_trackers(config: Config) -> None:
    """Raises ConfigError where run.trackers names one whose package is not installed. Imports none."""
    missing = [name for name in config.run.trackers if name in _PACKAGES and not _installed(_PACKAGES[name])]
    if missing:
        raise ConfigError(
            f"run.trackers names {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install 'gipo-mc[{','.join(missing)}]', or take it out of run.trackers."
        )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
