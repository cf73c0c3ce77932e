"""Does a layout fit its GPUs? For whoever starts runs: milliseconds, no torch, no GPU."""

from __future__ import annotations

from gipo_mc.config import Config
from gipo_mc.plan.hardware import hardware
from gipo_mc.plan.plan import make_plan
from gipo_mc.plan.run import read_run
from gipo_mc.plan.show.one import reasons


def misfit(
    config: Config, command: str, gpus: int, *, gpu: str = "h100", node: int = 8, config_file: str | None = None
) -> list[str]:
    """Why a run of this command does not fit so many GPUs, a sentence each; none where it does.

    gpu: a key of `gipo_mc.plan.hardware.HARDWARE`. node: GPUs of one machine. config_file: where the configuration is
    from; a model that a run of its folder is to make is found there. Raises ConfigError where the layout does not work
    at all, or where nothing is known of a model's sizes.
    """
    run = read_run(config, command, config_file=config_file)
    return reasons(make_plan(run, gpus, hardware(gpu), node=node))
