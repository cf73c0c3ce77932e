"""What a machine lacks: memory, in whatever step, and kernels for its GPUs. One sentence, and a code of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gipo_mc.config import Config
from gipo_mc.ops import native
from gipo_mc.parallel import runtime
from gipo_mc.run.command import run_command
from gipo_mc.supervised import loop, sft
from tests.ranks import run_ranks
from tests.runs import save_models


def test_a_gpu_without_kernels_is_told_of_before_a_model_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[object] = []
    monkeypatch.setattr(runtime, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(native, "_C", SimpleNamespace(build_info=lambda: {"cuda": False}))
    assert run_command("test", trained.append, argv=["device=cuda"]) == 2
    assert "built without CUDA kernels" in capsys.readouterr().err and not trained
    native._say_reference.cache_clear()
    monkeypatch.setenv("GIPO_MC_OPS", "reference")
    with pytest.warns(UserWarning, match="eager references"):
        assert run_command("test", trained.append, argv=["device=cuda"]) == 0 and trained


def _out_of_memory(rank: int, step: int, arguments: list[str], folder: Path) -> tuple[int, str]:
    """A command whose last rank fails to allocate memory in a step."""
    if rank == 1:
        backward, steps = loop.run_backward, iter(range(step))

        def failing(*given: Any, **named: Any) -> Any:
            if next(steps, None) is None:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")
            return backward(*given, **named)

        loop.run_backward = failing
    errors = folder / f"stderr-{rank}"
    with errors.open("w") as stream:
        sys.stderr = stream
        code = run_command("test", sft.train, argv=arguments)
    return code, errors.read_text()


@pytest.mark.parametrize("step", [0, 2])
def test_memory_that_runs_out_is_no_wrong_configuration(tmp_path: Path, step: int) -> None:
    """Every rank, the status and the message say so, and what the same command goes on from."""
    options = [f"run.dir={tmp_path}", "run.name=run", "device=cpu", f"model.policy={save_models(tmp_path)['policy']}"]
    options += ["data.demonstrations=[builtin]", "data.max_rows=16", "data.sequence_length=24", "checkpoint.every=1"]
    results = run_ranks(_out_of_memory, 2, step, [*options, "train.batch_size=4", "run.iterations=4"], tmp_path)
    assert [code for code, _ in results] == [7, 9], "of one that waits for the other, and of that one"
    status = json.loads((tmp_path / "run" / "run_status.json").read_text())
    assert status["exit_code"] == 9 and status["message"].startswith("Memory ran out (CUDA out of memory. Tried")
    said = "".join(text for _, text in results)
    assert said.count("error: Memory ran out") == 1 and "More of it" not in said
    assert "memory.recompute=full and memory.offload=[frozen]" in said
    assert ("continues from the checkpoint of step 2" if step else "the same command begins again") in said


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")])
def test_every_failed_allocation_is_one(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(config: Config) -> None:
        raise error

    assert run_command("test", fail, argv=["device=cpu"]) == 9 and "error: Memory ran out (" in capsys.readouterr().err
