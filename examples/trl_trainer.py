"""The three ops in TRL's GRPO trainer (pip install "trl>=1.16,<2"): its sampling, rewards and logs, another loss.

    python examples/trl_trainer.py [--steps 3]
    torchrun --nproc-per-node 2 examples/trl_trainer.py    # all sums of the loss are over all processes

TRL keeps what differs between prompts out of its advantages, and that is what groups differ in: the signal of R_var is
the reward itself. R_var is not linear in the batch, so a gradient accumulated over parts would be that of another
objective: gradient_accumulation_steps stays 1. TRL's other options of the loss (loss_type, epsilon_high, masks of
tools, importance sampling for vLLM) have no effect here. Tried with TRL 1.16.0, on one and two processes of a CPU, with
DistributedDataParallel. Three methods that are overridden have names that begin with an underscore: look at them again
when TRL is renewed.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from accelerate.utils import broadcast
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

import gipo_mc

BETA = 0.3
WORDS = ["<pad>", "</s>", "easy", "hard", "a", "b", "c", "d", "e", "f"]


class GroupInvariantTrainer(GRPOTrainer):
    """GRPO with the variance of the objective between two inferred groups as a penalty, and KL weighted by group.

    The classifier is equal on all processes. It is not part of TRL's checkpoints: a run that goes on from one finds its
    groups anew. Evaluation has TRL's own loss, and trains nothing.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.args.gradient_accumulation_steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps={self.args.gradient_accumulation_steps}: GroupInvariantTrainer needs 1, "
                "since the variances of parts of a batch are another objective than that of the whole. Raise "
                "per_device_train_batch_size, or take the two passes of docs/library.md."
            )
        weight = self.model.get_input_embeddings().weight
        self.classifier = torch.nn.Linear(weight.shape[1], 2).to(self.accelerator.device)
        broadcast([one.data for one in self.classifier.parameters()])  # each process has a seed of its own by now
        self.classifier_optimizer = torch.optim.AdamW(self.classifier.parameters(), lr=0.3)

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> Tensor:
        rewards_NK = super()._calculate_rewards(*arguments, **options)  # of the N responses of all processes
        self.last_reward_N = (rewards_NK * self.reward_weights.to(rewards_NK.device)).nansum(1)
        return rewards_NK

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        outputs = super()._generate_and_score_completions(inputs)
        reward_N, rows = self.last_reward_N, len(outputs["completion_ids"])
        signal_N = (reward_N - reward_N.mean()) / reward_N.std().clamp(min=1e-6)
        outputs["signal"] = signal_N[self.accelerator.process_index * rows :][:rows]
        return outputs

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, without gradient."""
        summed: Tensor = self.accelerator.reduce(tensor.detach(), reduction="sum")
        return summed

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        ids_BL = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask_BL = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        width, length_B = inputs["completion_ids"].shape[1], inputs["completion_mask"].sum(1)
        logp_BT, *_ = self._get_per_token_logps_and_entropies(model, ids_BL, mask_BL, width)
        logp_BT, signal_B = logp_BT.float(), inputs["signal"].float()
        behaviour_BT = inputs.get("old_per_token_logps")
        behaviour_BT = logp_BT.detach() if behaviour_BT is None else behaviour_BT.float()
        reference_BT = inputs.get("ref_per_token_logps")  # absent with beta=0, where the KL has no weight
        reference_BT = behaviour_BT if reference_BT is None else reference_BT.float()
        sequences, tokens = self.total(torch.stack([torch.full_like(length_B.sum(), len(length_B)), length_B.sum()]))
        tokens = tokens.clamp(min=1)  # none where TRL masks each response that is cut
        probs_BM, best = self.infer_groups(ids_BL, mask_BL, signal_B, sequences)
        advantage_BT = inputs["advantages"].float()[:, None].expand_as(logp_BT)
        kl_weight_B = gipo_mc.kl_weights(self.beta, probs_BM, best, "adaptive")
        objective = gipo_mc.group_objective(
            logp_BT, behaviour_BT, reference_BT, advantage_BT, length_B, probs_BM, signal_B, kl_weight_B,
            clip=self.epsilon_low, kl_estimator="k2", signal_form="ratio",
        )  # fmt: skip
        # PPO's term is a mean over all tokens, the signal one over a response's own: T_i / T makes the two agree.
        share_B = length_B * (sequences / tokens)
        moved_B = signal_B + share_B * (objective.signal_B - signal_B)
        weighted_M = (probs_BM * moved_B[:, None]).sum(0)
        everywhere_M = self.total(weighted_M).requires_grad_()
        between = gipo_mc.group_variance(self.total(objective.mass_M), everywhere_M, sequences, weights="size")
        (slope_M,) = torch.autograd.grad(between.variance, everywhere_M)
        self._metrics["train"]["group/variance"].append(between.variance.item())
        # The gradient of the whole batch's loss, once DistributedDataParallel has taken the mean over the processes.
        loss = (objective.weighted_kl - objective.surrogate_B.sum()) / tokens + BETA * (weighted_M * slope_M).sum()
        return loss * self.accelerator.num_processes

    def infer_groups(self, ids_BL: Tensor, mask_BL: Tensor, signal_B: Tensor, sequences: Tensor) -> tuple[Tensor, int]:
        """(p [B, 2] of the classifier, the best group). It takes a step towards a larger variance between groups."""
        with torch.no_grad():
            embedded_BLH = self.model.get_input_embeddings()(ids_BL) * mask_BL[:, :, None]
            feature_BH = embedded_BLH.float().sum(1) / mask_BL.sum(1, keepdim=True)
        with torch.enable_grad(), torch.autocast(ids_BL.device.type, enabled=False):
            probs_BM = self.classifier(feature_BH).softmax(-1)
            sums = [probs_BM.sum(0), (probs_BM * signal_B[:, None]).sum(0)]
            mass_M, weighted_M = (self.total(part).requires_grad_() for part in sums)
            found = gipo_mc.group_variance(mass_M, weighted_M, sequences, weights="size")
            slopes = torch.autograd.grad(-found.variance, (mass_M, weighted_M))
            parameters = list(self.classifier.parameters())
            for parameter, gradient in zip(parameters, torch.autograd.grad(sums, parameters, slopes), strict=True):
                parameter.grad = self.total(gradient)
            self.classifier_optimizer.step()
        return probs_BM.detach(), int(found.objective_M.argmax())


def vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """An easy prompt is paid each a, a hard one each "e" behind an "f"."""
    return [
        float(text.count("a")) if "easy" in prompt else 2.0 * text.replace(" ", "").count("fe")
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def build(folder: str, **options: Any) -> GroupInvariantTrainer:
    """The trainer of a tiny model, which it keeps in `folder`; options: more of GRPOConfig."""
    torch.manual_seed(0)
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", padding_side="left")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, eos_token_id=1, **sizes))
    rows = Dataset.from_list([{"prompt": f"{kind} {letter}"} for kind in ("easy", "hard") for letter in "abcdef"])
    model.save_pretrained(f"{folder}/model")  # TRL reads the reference from there
    settings = {
        "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "num_generations": 4,
        "max_completion_length": 6, "beta": 0.02, "learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True,
        "report_to": [], "save_strategy": "no", "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    return GroupInvariantTrainer(
        model=f"{folder}/model", reward_funcs=vowels, args=GRPOConfig(output_dir=f"{folder}/run", **settings | options),
        train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
    )  # fmt: skip


def main(steps: int) -> list[dict[str, float]]:
    """Train a tiny model; TRL's log."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(folder, max_steps=steps)
        trainer.train()
        return list(trainer.state.log_history)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps [%(default)s]")
    for line in main(parser.parse_args().steps):
        print({name: round(value, 6) for name, value in line.items() if name in ("step", "reward", "group/variance")})
