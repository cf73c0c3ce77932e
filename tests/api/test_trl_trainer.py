"""examples/trl_trainer.py, where TRL is installed, which nothing here asks for: `pip install "trl>=1.16,<2"`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.api.apart import in_a_process
from tests.ranks import run_ranks

pytest.importorskip("trl")


def test_the_trainer_of_trl_takes_the_ops(tmp_path: Path) -> None:
    from examples.trl_trainer import main

    history = in_a_process(main, tmp_path, 2)
    assert [line["step"] for line in history if "group/variance" in line] == [1, 2]


def _as_torchrun_starts_it(port: int) -> None:
    """Accelerate makes the process group itself, of the environment."""
    torch.distributed.destroy_process_group()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _batch() -> dict[str, torch.Tensor]:
    """Eight responses of unequal lengths, off policy, and what TRL knows of them."""
    random, rows, width = torch.Generator().manual_seed(5), 8, 6
    ids = {"prompt_ids": (2, 4), "completion_ids": (width, 10)}
    tokens = {name: torch.randint(2, high, (rows, n), generator=random) for name, (n, high) in ids.items()}
    mask = torch.arange(width) < torch.tensor([1, 6, 3, 2, 6, 5, 4, 1])[:, None]
    noise = [0.1 * torch.randn(rows, width, generator=random) for _ in range(2)]
    return {
        **tokens,
        "prompt_mask": torch.ones(rows, 2, dtype=torch.int64),
        "completion_mask": mask.long(),
        "old_per_token_logps": -2.3 + noise[0],
        "ref_per_token_logps": -2.3 + noise[1],
        "advantages": torch.randn(rows, generator=random),
        "signal": torch.randn(rows, generator=random),
    }


def _step(rank: int, folder: str, ranks: int, port: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(gradients of the policy, as DistributedDataParallel leaves them, and the classifier's weight) of one step."""
    from examples.trl_trainer import build

    _as_torchrun_starts_it(port)
    trainer = build(f"{folder}/{ranks}-{rank}", per_device_train_batch_size=8 // ranks)
    assert trainer.accelerator.num_processes == ranks
    own = {name: value.chunk(ranks)[rank] for name, value in _batch().items()}
    trainer.model.train()
    for _ in range(2):  # the second has groups that differ
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, own).backward()
    gradients = [
        trainer.accelerator.reduce(one.grad, reduction="mean")
        for one in trainer.model.parameters()
        if one.grad is not None
    ]
    return gradients, trainer.classifier.weight.detach()


def test_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    ((whole, weight),) = run_ranks(_step, 1, str(tmp_path), 1, _free_port())
    parts = run_ranks(_step, 2, str(tmp_path), 2, _free_port())
    assert all(torch.equal(parts[0][1], own) for _, own in parts)
    torch.testing.assert_close(parts[0][1], weight)
    for gradients, _ in parts:
        torch.testing.assert_close(gradients, whole, rtol=1e-4, atol=1e-6)
    assert max(float(one.abs().max()) for one in whole) > 0.01


def _run(rank: int, folder: str, port: int) -> tuple[list[Any], torch.Tensor]:
    """(of each step the rewards of this rank's responses, their signals, and all rewards; the classifier's weight)."""
    from examples import trl_trainer

    _as_torchrun_starts_it(port)
    seen: list[Any] = []

    class Watched(trl_trainer.GroupInvariantTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            if self.model.training:
                prompts, texts = (
                    self.processing_class.batch_decode(
                        inputs[f"{part}_ids"] * inputs[f"{part}_mask"], skip_special_tokens=True
                    )
                    for part in ("prompt", "completion")
                )
                seen.append((torch.tensor(trl_trainer.vowels(prompts, texts)), inputs["signal"], self.last_reward_N))
            return super()._compute_loss(model, inputs)

    trl_trainer.GroupInvariantTrainer = Watched
    trainer = trl_trainer.build(f"{folder}/{rank}", max_steps=2, per_device_train_batch_size=8)
    trainer.train()
    return seen, trainer.classifier.weight.detach()


def test_each_process_has_the_signals_of_its_own_responses(tmp_path: Path) -> None:
    steps, weights = zip(*run_ranks(_run, 2, str(tmp_path), _free_port()), strict=True)
    assert torch.equal(*weights) and [len(one) for one in steps] == [2, 2]
    for own in steps:
        for reward_B, signal_B, all_N in own:
            assert len(reward_B) == 8 and len(all_N) == 16
            expected = (reward_B - all_N.mean()) / all_N.std()
            torch.testing.assert_close(signal_B, expected)
    assert not torch.equal(steps[0][0][0], steps[1][0][0])


def _evaluated(folder: str) -> tuple[float, dict[str, Any], list[str]]:
    """(how far the classifier moved in an evaluation, what that gave, what it left among the metrics of training)."""
    from examples.trl_trainer import build

    trainer = build(folder, max_steps=1, per_device_eval_batch_size=8)
    weight = trainer.classifier.weight.detach().clone()
    found = trainer.evaluate()
    return float((trainer.classifier.weight - weight).abs().max()), found, list(trainer._metrics["train"])


def test_evaluation_trains_nothing(tmp_path: Path) -> None:
    moved, found, metrics = in_a_process(_evaluated, tmp_path, str(tmp_path))
    assert moved == 0.0 and metrics == [] and "eval_reward" in found


def _without_reference(folder: str) -> int:
    from examples.trl_trainer import build

    trainer = build(folder, max_steps=1, beta=0.0)
    trainer.train()
    return int(trainer.state.global_step)


def test_a_run_without_a_reference_model(tmp_path: Path) -> None:
    assert in_a_process(_without_reference, tmp_path, str(tmp_path)) == 1


def test_gradient_accumulation_is_refused(tmp_path: Path) -> None:
    from examples.trl_trainer import build

    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=2: .* the variances of parts of a batch"):
        build(str(tmp_path), gradient_accumulation_steps=2)
