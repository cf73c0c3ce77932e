"""Makes and trains what the built-in task starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from gipo_mc.config import Config
from gipo_mc.data.synthetic import builtin_llama_config, builtin_tokenizer
from gipo_mc.parallel import runtime
from gipo_mc.parallel.collectives import on_main
from gipo_mc.run import checkpoint
from gipo_mc.run.terminal.voice import tell
from gipo_mc.supervised import sft
from gipo_mc.tools.new_model import create_model


def make_model(config: Config) -> None:
    """Make the small Llama, if the policy is to start from it and it is not there."""
    folder = Path(config.run.dir) / "builtin_model"
    if Path(config.model.policy) != folder:
        return
    runtime.initialize(config.parallel, config.device)

    def work() -> None:
        if not all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json")):
            # An interrupted job of an earlier version may have left a part of it.
            create_model(folder, builtin_tokenizer(), config.run.seed, overwrite=True, **builtin_llama_config())

    on_main(work)


def train_sft(config: Config, prepared: Config, prepare: Callable[[Config], None]) -> None:
    """Train the built-in SFT run, if the policy of `config` is to start from it and it has no finished checkpoint.

    prepared: the configuration of that run. prepare: makes what it starts from.
    """
    folder = Path(config.run.dir) / "builtin_sft"
    if Path(config.model.policy) != folder:
        return
    runtime.initialize(config.parallel, config.device)
    if on_main(lambda: _finished(folder / "checkpoints", prepared.run.iterations)):
        return
    if dist.get_rank() == 0:
        steps = prepared.run.iterations
        tell(f"The built-in task needs {folder} first: {steps} steps, about two minutes on two CPU cores.")
    prepare(prepared)
    sft.train(prepared)


def _finished(checkpoints: Path, iterations: int) -> bool:
    newest, _ = checkpoint.latest(checkpoints)
    return newest is not None and checkpoint.load_state(newest)["step"] >= iterations
