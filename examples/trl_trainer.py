"""The three ops in TRL's GRPO trainer (pip install "trl>=1.16,<2"): its sampling, rewards and logs, another loss.

    python examples/trl_trainer.py [--steps 3]

TRL keeps what differs between prompts out of its advantages, and that is what groups differ in: the signal of R_var is
the reward itself. R_var is not linear in the batch, so a gradient accumulated over parts would be that of another
objective: gradient_accumulation_steps stays 1. Three methods that are overridden have names that begin with an
underscore: look at them again when TRL is renewed.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

import gipo_mc

BETA = 0.3
WORDS = ["<pad>", "</s>", "easy", "hard", "a", "b", "c", "d", "e", "f"]


class GroupInvariantTrainer(GRPOTrainer):
    """GRPO with the variance of the objective between two inferred groups as a penalty, and KL weighted by group."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        embedding = self.model.get_input_embeddings()
        self.classifier = torch.nn.Linear(embedding.weight.shape[1], 2)
        self.classifier_optimizer = torch.optim.AdamW(self.classifier.parameters(), lr=0.3)

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> Tensor:
        rewards_BK = super()._calculate_rewards(*arguments, **options)
        self.last_reward_B = (rewards_BK * self.reward_weights.to(rewards_BK.device)).nansum(1)
        return rewards_BK

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        outputs = super()._generate_and_score_completions(inputs)
        reward_B = self.last_reward_B
        outputs["signal"] = (reward_B - reward_B.mean()) / reward_B.std().clamp(min=1e-6)
        return outputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        ids_BL = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask_BL = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        width, length_B = inputs["completion_ids"].shape[1], inputs["completion_mask"].sum(1)
        logp_BT, *_ = self._get_per_token_logps_and_entropies(model, ids_BL, mask_BL, width)
        behaviour_BT = inputs.get("old_per_token_logps")
        behaviour_BT = logp_BT.detach() if behaviour_BT is None else behaviour_BT
        probs_BM, signal_B = self.infer_groups(ids_BL, mask_BL, inputs["signal"]), inputs["signal"]
        best = int(((probs_BM * signal_B[:, None]).sum(0) / probs_BM.sum(0)).argmax())
        objective = gipo_mc.group_objective(
            logp_BT,
            behaviour_BT,
            inputs["ref_per_token_logps"],
            inputs["advantages"][:, None].expand_as(logp_BT),
            length_B,
            probs_BM,
            signal_B,
            gipo_mc.kl_weights(self.beta, probs_BM, best, "adaptive"),
            clip=self.epsilon_low,
            kl_estimator="k3",
            signal_form="ratio",
        )
        between = gipo_mc.group_variance(objective.mass_M, objective.weighted_M, len(signal_B), weights="size")
        self._metrics["train"]["group/variance"].append(float(between.variance))
        return (objective.weighted_kl - objective.surrogate_B.sum()) / length_B.sum() + BETA * between.variance

    def infer_groups(self, ids_BL: Tensor, mask_BL: Tensor, signal_B: Tensor) -> Tensor:
        """p [B, 2] of the classifier, which takes a step towards a larger variance between its groups."""
        with torch.no_grad():
            embedded_BLH = self.model.get_input_embeddings()(ids_BL) * mask_BL[:, :, None]
            feature_BH = embedded_BLH.sum(1) / mask_BL.sum(1, keepdim=True)
        with torch.enable_grad():
            probs_BM = self.classifier(feature_BH).softmax(-1)
            sums = probs_BM.sum(0), (probs_BM * signal_B[:, None]).sum(0)
            self.classifier_optimizer.zero_grad()
            (-gipo_mc.group_variance(*sums, len(signal_B), weights="size").variance).backward()
            self.classifier_optimizer.step()
        return probs_BM.detach()


def vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """An easy prompt is paid each a, a hard one each "e" behind an "f"."""
    return [
        float(text.count("a")) if "easy" in prompt else 2.0 * text.replace(" ", "").count("fe")
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def main(steps: int) -> list[dict[str, float]]:
    """Train a tiny model; TRL's log."""
    torch.manual_seed(0)
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", padding_side="left")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, eos_token_id=1, **sizes))
    rows = [{"prompt": f"{kind} {letter}"} for kind in ("easy", "hard") for letter in "abcdef"]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/model")  # TRL reads the reference from there
        settings = GRPOConfig(
            output_dir=f"{folder}/run", per_device_train_batch_size=16, gradient_accumulation_steps=1,
            num_generations=4, max_completion_length=6, beta=0.02, learning_rate=1e-3, max_steps=steps,
            logging_steps=1, use_cpu=True, report_to=[], save_strategy="no", bf16=False, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = GroupInvariantTrainer(
            model=f"{folder}/model", reward_funcs=vowels, args=settings, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        return list(trainer.state.log_history)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps [%(default)s]")
    for line in main(parser.parse_args().steps):
        print({name: round(value, 6) for name, value in line.items() if name in ("step", "reward", "group/variance")})
