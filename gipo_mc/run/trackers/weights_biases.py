"""Weights & Biases: one run there for a run folder, online or as files for `wandb sync`.

A row's step there is the run's own step, under which everything of it is gathered. W&B takes no step again that it has:
where a run goes back to a checkpoint, the steps that it repeats stay as they were first sent, and are not sent again.
"""

from __future__ import annotations

import html
import netrc
import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from gipo_mc.config.environment import hide_value
from gipo_mc.errors import ConfigError
from gipo_mc.run.trackers.protocol import About, End, Memory

#: Seconds for the first answer of the server, and for what is left at the end.
_START, _FINISH = 60.0, 50.0
_KEY = "WANDB_API_KEY"
#: Under what `wandb login` leaves a key in ~/.netrc, by version.
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")


class WeightsAndBiases:
    """See `Tracker`."""

    title = "Weights & Biases"

    def __init__(self) -> None:
        self._run: Any = None
        self._sent = 0

    def start(self, about: About) -> None:
        """Raises ConfigError where it is to be online and has no key; what the library raises."""
        hide_value(os.environ.get(_KEY, ""), _KEY)
        mode = _mode(about.tracking.wandb_mode)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # a connection to its makers, offline too
        import wandb

        if self._run is not None:  # it failed: begin with a new process of the library
            self._run = None
            wandb.teardown(exit_code=1)
        memory, tracking = Memory(about.folder / "wandb.json"), about.tracking
        place = {"project": tracking.project, "entity": tracking.entity}
        known = all(memory.values.get(key) == value for key, value in place.items())
        name = memory.values.get("id") if known else None
        self._sent = max(about.logged, memory.values.get("sent", 0)) if name else 0
        memory.keep(id=name or secrets.token_hex(8), sent=self._sent, **place)
        self._run = wandb.init(
            project=tracking.project,
            entity=tracking.entity or None,
            name=tracking.name,
            group=tracking.group or None,
            tags=list(about.tags),
            job_type=about.command,
            config=_nested(about.options),
            id=memory.values["id"],
            resume="allow",
            mode=mode,
            dir=str(about.folder),
            reinit="create_new",
            settings=_settings(wandb),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        import wandb

        self._log(step, {name: wandb.Histogram(values)})

    def text(self, step: int, name: str, text: str) -> None:
        import wandb

        self._log(max(step, self._sent + 1), {name: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)})

    def finish(self, end: End) -> None:
        import wandb

        self._run.summary.update({"state": end.state, "exit_code": end.exit_code, "message": end.message})
        if end.report is not None:
            page = wandb.Artifact(f"report-{self._run.id}", type="report")
            page.add_file(str(end.report), name="report.html")
            self._run.log_artifact(page)
        if end.state == "requeue":
            self._run.mark_preempting()
        self._run.finish(exit_code=end.exit_code)

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if step > self._sent or step == self._sent == 0:
            self._run.log(values, step=step)


def _settings(wandb: Any) -> Any:
    """Nothing printed, no source, command line or packages of the user sent, no end that waits for ever; the button
    that stops a run there asks as a scheduler does, instead of interrupting it."""
    return wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        x_save_requirements=False,
        init_timeout=_START,
        finish_timeout=_FINISH,
        stop_fn=lambda: os.kill(os.getpid(), signal.SIGTERM),
    )


def _mode(wanted: str) -> Any:
    """online or offline; without a key the library would ask for one at the terminal."""
    if wanted == "auto":
        wanted = os.environ.get("WANDB_MODE", "") or ("online" if _has_key() else "offline")
    if wanted == "online" and not _has_key():
        raise ConfigError(
            "tracking.wandb_mode=online needs an API key and there is none: set WANDB_API_KEY or call `wandb login`, "
            "or set tracking.wandb_mode=offline"
        )
    return wanted


def _has_key() -> bool:
    if os.environ.get(_KEY) or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    own = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    with suppress(OSError, netrc.NetrcParseError):
        known = netrc.netrc(os.environ.get("NETRC") or os.path.expanduser("~/.netrc")).hosts
        return any(host in known for host in ([own] if own else _HOSTS))
    return False


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in their sections."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        section, _, name = key.rpartition(".")
        (found.setdefault(section, {}) if section else found)[name] = value
    return found
