"""From Hugging Face folders through training and back: the trained policy generates in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gipo_mc.training import gi_ppo
from gipo_mc.training.conversion import to_hf
from gipo_mc.training.evaluate_policy import evaluate_policy
from gipo_mc.training.rl_setup import restore, set_up
from gipo_mc.training.rollout import roll_out, take_prompts
from gipo_mc.training.session import open_session
from tests.ranks import LAYOUTS, run_ranks
from tests.training.runs import read_metrics, rl_config, save_models


def _train_and_export(rank: int, folder: Path, models: dict[str, str], layout: dict[str, Any]) -> Any:
    config = rl_config(folder, models, "eval.prompts=2", "policy.lr=0.01", "algorithm.epochs=1", **layout)
    gi_ppo.train(config)
    # The same command again finds the run finished, and holds the trained policy.
    with open_session(config, "train_gi_ppo") as session:
        setup = set_up(session)
        restore(session, setup)
        prompts = take_prompts(setup.prompts, config, 0)[:6]
        rollout = roll_out(setup.policy_model, setup.tokenizer, prompts, config, 0, greedy=True)
        start, layout_now = session.start, session.layout
    to_hf(str(folder / "run"), folder / "exported", layout_now)
    return start, rollout.sequences


@pytest.mark.parametrize("name", ["1", "TP2xPP2"])
def test_the_trained_policy_generates_the_same_in_transformers(tmp_path: Path, name: str) -> None:
    models = save_models(tmp_path / "models")
    layout = LAYOUTS[name]
    ranks = layout.get("tensor", 1) * layout.get("pipeline", 1)
    start, sequences = run_ranks(_train_and_export, ranks, tmp_path, models, layout)[0]
    assert start == 2 and [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1, 2]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    before = AutoModelForCausalLM.from_pretrained(models["policy"], dtype=torch.float32).state_dict()
    assert any(not torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()), (
        "nothing was trained"
    )
    for row in range(len(sequences)):
        prompt, length = int(sequences.prompt_length_B[row]), int(sequences.response_length_B[row])
        ids = sequences.tokens_BL[row : row + 1, :prompt]
        generated = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        assert generated[0, prompt:].tolist() == sequences.tokens_BL[row, prompt : prompt + length].tolist()


def _evaluate(rank: int, folder: Path, models: dict[str, str]) -> dict[str, float]:
    with open_session(rl_config(folder, models, "eval.prompts=1"), "test") as session:
        return evaluate_policy(set_up(session), session.config)


def test_fewer_evaluation_prompts_than_replicas(tmp_path: Path) -> None:
    models = save_models(tmp_path / "models")
    (alone,) = run_ranks(_evaluate, 1, tmp_path / "one", models)
    for found in run_ranks(_evaluate, 2, tmp_path / "two", models):
        assert found == pytest.approx(alone, rel=1e-4)
