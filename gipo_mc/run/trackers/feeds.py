"""The trackers of a run that are fed on threads, from its configuration to its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gipo_mc.config import Config, as_yaml, values
from gipo_mc.config.environment import hide
from gipo_mc.run.folder import RunFolder, State
from gipo_mc.run.trackers.feed import Feed
from gipo_mc.run.trackers.mlflow_runs import MLflow, store
from gipo_mc.run.trackers.protocol import About, End, Tracker
from gipo_mc.run.trackers.report import make_report
from gipo_mc.run.trackers.weights_biases import WeightsAndBiases

FED: dict[str, Callable[[], Tracker]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
#: Seconds for the report and for the last words of the trackers. Who asked a job to stop kills it soon.
_REPORT: dict[State, float] = {"done": 60.0, "failed": 10.0}
_LAST_WORDS: dict[State, float] = {"done": 60.0, "failed": 10.0, "requeue": 5.0, "running": 5.0}


class Feeds:
    """The feeds of a run. begin, logged: as in `About`."""

    def __init__(self, folder: RunFolder, config: Config, begin: int, logged: int) -> None:
        self._folder = folder
        named = [name for name in config.run.trackers if name in FED]
        about = _about(folder, config, begin, logged) if named else None
        self._feeds = [Feed(FED[name](), about) for name in dict.fromkeys(named) if about is not None]

    def put(self, kind: str, *entry: object) -> None:
        """An entry for all of them."""
        for feed in self._feeds:
            feed.put(kind, *entry)

    def complaints(self) -> list[str]:
        """Sentences on those that do not take what they are given, each once."""
        return [said for feed in self._feeds if (said := feed.complaint())]

    def close(self) -> list[str]:
        """Tell all how the run ended, as run_status.json has it. Returns sentences on those that lack something."""
        if not self._feeds:
            return []
        status = self._folder.read_status()
        state: State = status.get("state", "running")
        report = None
        if state in _REPORT:
            report = make_report(self._folder.path, self._folder.trackers / "report.html", _REPORT[state])
        end = End(state, int(status.get("exit_code") or 0), hide(str(status.get("message") or "")), report)
        said = [feed.close(end, _LAST_WORDS[state]) for feed in self._feeds]
        self._feeds = []
        return list(filter(None, said))


def _about(folder: RunFolder, config: Config, begin: int, logged: int) -> About:
    tracking = config.tracking.model_copy(
        update={
            "name": config.tracking.name or folder.path.name,
            "mlflow_uri": store(config.tracking.mlflow_uri, Path(config.run.dir)),
        }
    )
    tags = [*config.tracking.tags, folder.command]
    tags += [config.algorithm.name] if folder.command == "train_gi_ppo" else []
    shown = {key: _hidden(value) for key, value in values(config).items()}
    return About(folder.trackers, folder.command, tracking, tags, shown, hide(as_yaml(config)), begin, logged)


def _hidden(value: object) -> object:
    if isinstance(value, list):
        return [_hidden(item) for item in value]
    return hide(value) if isinstance(value, str) else value
