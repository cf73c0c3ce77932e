"""TRL's PPO trainer, which its 1.12 series has last: one iteration a unit.

Its optimizer steps once in `gradient_accumulation_steps` passes, and those are a whole rollout batch; so that both
mini-batches make a step of their own, the batch is not accumulated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.rivals import material as rows_of
from benchmarks.rivals.protocol import Turns, versions


class TakeTurns(TrainerCallback):
    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        tokens = rows_of.FILES["ppo"].count * rows_of.NEW_TOKENS  # no response is ended early
        figures: dict[str, Any] = {"tokens": tokens}
        about = {"versions": versions("torch", "transformers", "trl", "accelerate")}
        self._turns.wait(**(figures if state.global_step > 1 else about))


def ppo(material: Path, turns: Turns) -> None:
    logging.disable_progress_bar()
    count = rows_of.FILES["ppo"].count
    tokenizer = AutoTokenizer.from_pretrained(material / "model", padding_side="left")
    config = PPOConfig(
        output_dir=str(material / "runs" / "trl"),
        per_device_train_batch_size=count,
        gradient_accumulation_steps=1,
        num_mini_batches=2,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=count,
        total_episodes=count * 10**6,
        response_length=rows_of.NEW_TOKENS,
        temperature=1.0,
        num_sample_generations=0,
        learning_rate=1e-7,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )

    def causal() -> Any:
        return AutoModelForCausalLM.from_pretrained(material / "model", dtype=torch.float32)

    def scoring() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            material / "reward", num_labels=1, dtype=torch.float32
        )

    PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=causal(),
        ref_model=causal(),
        reward_model=scoring(),
        value_model=scoring(),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in rows_of.prompts(material, "ppo")]),
        eval_dataset=Dataset.from_list([{"input_ids": rows_of.prompts(material, "ppo")[0]}]),
        callbacks=[TakeTurns(turns)],
    ).train()
