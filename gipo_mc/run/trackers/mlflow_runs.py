"""MLflow: one run of an experiment for a run folder, on a server or in a folder.

Options are its parameters, which cannot change: those that a later start changes become tags. A metric may have
several values of one step: where a run goes back to a checkpoint, the steps that it repeats are sent again, and the
later time is the one that counts. The tag gipo_mc.rewound names them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gipo_mc.config.environment import hide_value
from gipo_mc.errors import ConfigError
from gipo_mc.run.trackers.protocol import About, End, Memory

#: What MLflow has for histograms: these quantiles of them, as metrics.
_QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
_STATUS = {"done": "FINISHED", "failed": "FAILED", "requeue": "KILLED", "running": "RUNNING"}
#: The longest value of a parameter and of a tag, and how many of them and of metrics go into one request.
_LONGEST, _PARAMETERS, _METRICS = 5000, 100, 1000
#: How the library behaves: no report on its use to its makers, a folder as store, no minutes on a server that is away,
#: no word of its own at the end of a run, among the run's.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


class MLflow:
    """See `Tracker`."""

    title = "MLflow"

    def __init__(self) -> None:
        self._client: Any = None
        self._run = ""
        self._texts = 0
        #: Names of the metrics that a folder has as files; None: a server, which has no files.
        self._files: set[str] | None = None

    def start(self, about: About) -> None:
        """Raises ConfigError where the experiment was deleted; what the library raises."""
        for name in _SECRETS:
            hide_value(os.environ.get(name, ""), name)
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        uri, project = about.tracking.mlflow_uri, about.tracking.project
        self._client = client = MlflowClient(tracking_uri=uri)
        memory = Memory(about.folder / "mlflow.json")
        known = memory.values if (memory.values.get("uri"), memory.values.get("project")) == (uri, project) else {}
        if known.get("id"):
            self._run = known["id"]
            client.update_run(self._run, status="RUNNING")
            if about.logged > about.begin:
                lost = f"steps {about.begin + 1} to {about.logged} were sent twice: the later time counts"
                client.set_tag(self._run, "gipo_mc.rewound", lost)
        else:
            run = client.create_run(_experiment(client, project), run_name=about.tracking.name)
            self._run = run.info.run_id
            memory.keep(id=self._run, uri=uri, project=project)
        self._describe(about)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(self._metric(name), values[name], now, step) for name in sorted(values)]
        for first in range(0, len(rows), _METRICS):
            self._client.log_batch(self._run, metrics=rows[first : first + _METRICS])

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        found = np.quantile(values, list(_QUANTILES.values()))
        self.scalars(step, {f"{name}/{label}": float(value) for label, value in zip(_QUANTILES, found, strict=True)})

    def text(self, step: int, name: str, text: str) -> None:
        self._texts += 1
        self._client.log_text(self._run, f"{text}\n", f"{name}/{step:08d}-{self._texts}.txt")

    def finish(self, end: End) -> None:
        if end.report is not None:
            self._client.log_artifact(self._run, str(end.report))
        for key, value in (("state", end.state), ("exit_code", str(end.exit_code)), ("message", end.message)):
            self._client.set_tag(self._run, f"gipo_mc.{key}", value[:_LONGEST])
        self._client.set_terminated(self._run, status=_STATUS[end.state])

    def _describe(self, about: About) -> None:
        """Parameters, tags, and config.yaml."""
        from mlflow.entities import Param, RunTag

        found = self._client.get_run(self._run).data
        known, self._files = found.params, set(found.metrics) if about.tracking.mlflow_uri.startswith("file:") else None
        options = {_name(key): str(value)[:_LONGEST] for key, value in about.options.items()}
        new = [Param(key, value) for key, value in options.items() if key not in known]
        for first in range(0, len(new), _PARAMETERS):
            self._client.log_batch(self._run, params=new[first : first + _PARAMETERS])
        tags = {"command": about.command, **({"group": about.tracking.group} if about.tracking.group else {})}
        tags |= {f"tag.{_name(tag)}": "true" for tag in about.tags}
        tags |= {f"now.{key}": value for key, value in options.items() if known.get(key, value) != value}
        self._client.log_batch(self._run, tags=[RunTag(key, value) for key, value in tags.items()])
        self._client.log_text(self._run, about.yaml, "config.yaml")

    def _metric(self, name: str) -> str:
        """What a metric is called there. In a folder each is a file, and `group/gap` cannot be one where `group/gap/2`
        made it a folder: the one that comes second is `group/gap/all`, or `group/gap.2`."""
        name = _name(name)
        if self._files is None:
            return name
        for above in (name[: slash.start()] for slash in re.finditer("/", name)):
            if above in self._files:
                name = f"{above}.{name[len(above) + 1 :]}"
        if any(file.startswith(f"{name}/") for file in self._files):
            name = f"{name}/all"
        self._files.add(name)
        return name


def store(uri: str, dir: Path) -> str:
    """The address of MLflow: what the configuration or the environment names, else a folder beside the runs."""
    found = uri or os.environ.get("MLFLOW_TRACKING_URI", "") or str(dir / "mlruns")
    is_address = re.match(r"[a-z][a-z0-9+.-]*:|databricks$", found)
    return found if is_address else Path(os.path.expanduser(found)).absolute().as_uri()


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name))
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"the experiment {name} of MLflow was deleted: restore it there, or set tracking.project to another"
        )
    return str(found.experiment_id)


def _name(name: str) -> str:
    """A name that MLflow takes: what it does not allow becomes an underscore."""
    return re.sub(r"[^/\w.\- :]", "_", name)
