"""TRL's SFT, DPO and reward trainers on the same ids, a step in passes of 16 rows or pairs: 8 and 32 are no faster.

Full float32 without recomputation of activations: TRL's defaults are bfloat16 and gradient checkpointing, which save
memory and cost time. The reference of DPO is scored before the first step, as ours is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from benchmarks.rivals import material as rows_of
from benchmarks.rivals.protocol import Turns, versions

#: Rows or pairs of one pass.
MICRO_BATCH = 16
PACKAGES = ("torch", "transformers", "trl", "accelerate")


class TakeTurns(TrainerCallback):
    """Waits after each step. The first one is the warm-up."""

    def __init__(self, turns: Turns, tokens: float) -> None:
        self._turns, self._tokens = turns, tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        figures: dict[str, Any] = {"tokens": self._tokens}
        self._turns.wait(**(figures if state.global_step > 1 else {"versions": versions(*PACKAGES)}))


def settings(material: Path, batch: int) -> dict[str, Any]:
    """What the three trainers' arguments have in common, for a step of `batch` rows or pairs."""
    logging.disable_progress_bar()
    return {
        "output_dir": str(material / "runs" / "trl"),
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": batch // MICRO_BATCH,
        "max_steps": 10**6,
        "learning_rate": 1e-7,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_length": None,
    }


def sft(material: Path, turns: Turns) -> None:
    rows = rows_of.read(material)["demonstrations"]
    data = Dataset.from_list(
        [
            {
                "input_ids": row["prompt"] + row["chosen"],
                "completion_mask": [0] * len(row["prompt"]) + [1] * len(row["chosen"]),
            }
            for row in rows
        ]
    )
    SFTTrainer(
        model=_model(material),
        args=SFTConfig(**settings(material, len(rows)), completion_only_loss=True),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(material / "model"),
        callbacks=[TakeTurns(turns, sum(len(row["chosen"]) for row in rows))],
    ).train()


class OnIds(DPOTrainer):
    """DPO of pairs that are token ids already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def dpo(material: Path, turns: Turns) -> None:
    rows = rows_of.read(material)["pairs"]
    data = Dataset.from_list(
        [{"prompt_ids": row["prompt"], "chosen_ids": row["chosen"], "rejected_ids": row["rejected"]} for row in rows]
    )
    tokens = sum(len(row["chosen"]) + len(row["rejected"]) for row in rows)
    OnIds(
        model=_model(material),
        args=DPOConfig(**settings(material, len(rows)), precompute_ref_log_probs=True),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(material / "model"),
        callbacks=[TakeTurns(turns, tokens)],
    ).train()


def reward(material: Path, turns: Turns) -> None:
    rows = rows_of.read(material)["pairs"]
    data = Dataset.from_list(
        [{f"{which}_ids": row["prompt"] + row[which] for which in ("chosen", "rejected")} for row in rows]
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        material / "reward", num_labels=1, dtype=torch.float32, attn_implementation="sdpa"
    )
    RewardTrainer(
        model=model,
        args=RewardConfig(**settings(material, len(rows))),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(material / "model"),
        callbacks=[TakeTurns(turns, rows_of.tokens_read(material, "pairs"))],
    ).train()


def _model(material: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(material / "model", dtype=torch.float32, attn_implementation="sdpa")
