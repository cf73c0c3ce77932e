"""Weights & Biases: one run there for a run folder, online or as files for `wandb sync`.

A row's step there is the run's own step, under which everything of it is gathered. W&B takes no step again that it has:
where a run goes back to a checkpoint, the steps that it repeats stay as they were first sent, and are not sent again.
Online the server says which it has. Offline that is remembered here, because a killed job loses what the library had
not yet written.
"""

from __future__ import annotations

import html
import netrc
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from gipo_mc.config.environment import hide_value
from gipo_mc.errors import ConfigError
from gipo_mc.run.trackers.protocol import About, End, Memory

#: Seconds for the first answer of the server, for what is left at the end, and between two writes to the disk.
_START, _FINISH, _WRITE = 60.0, 50.0, 1.0
_KEY = "WANDB_API_KEY"
#: Under what `wandb login` leaves a key in ~/.netrc, by version.
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")


class WeightsAndBiases:
    """See `Tracker`."""

    title = "Weights & Biases"

    def __init__(self) -> None:
        self._run: Any = None
        self._memory: Memory | None = None
        #: Last step that W&B has, or -1; steps that were given to the library since, with the time.
        self._sent = -1
        self._given: deque[tuple[float, int]] = deque()

    def start(self, about: About) -> None:
        """Raises ConfigError where it is to be online and has no key; what the library raises."""
        hide_value(os.environ.get(_KEY, ""), _KEY)
        mode = _mode(about.tracking.wandb_mode)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # a connection to its makers, offline too
        import wandb

        if self._run is not None:  # it failed: begin with a new process of the library
            self._run = None
            wandb.teardown(exit_code=1)
        tracking = about.tracking
        self._memory = memory = Memory(about.folder / "wandb.json")
        place = {"project": tracking.project, "entity": tracking.entity}
        known = bool(memory.values.get("id")) and all(memory.values.get(key) == place[key] for key in place)
        if not known:
            memory.keep(id=secrets.token_hex(8), sent=-1, **place)
        self._given.clear()
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
        self._sent = memory.values.get("sent", -1) if mode == "offline" else self._run.step - 1

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))
        self._remember(step)

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
        if self._given and self._memory:
            self._memory.keep(sent=self._given[-1][1])

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if step > self._sent:
            self._run.log(values, step=step)

    def _remember(self, step: int) -> None:
        """A row is whole when the next one begins, and on the disk some time later."""
        now, written = time.monotonic(), -1
        self._given.append((now, step))
        while len(self._given) > 1 and self._given[1][0] < now - 2 * _WRITE:
            written = self._given.popleft()[1]
        if written > self._sent and self._memory:
            self._memory.keep(sent=written)


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
        x_transaction_log_flush_interval=_WRITE,
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
