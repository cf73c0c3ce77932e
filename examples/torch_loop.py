"""The three ops in a training loop of one's own: plain torch and transformers, no Megatron, no run folder.

    python examples/torch_loop.py [--steps 40] [--beta 0.3]    # --beta 0: PPO, to compare

A tiny Llama continues prompts of four tokens. Prompts of even tokens are easy: each token 1 pays. Those of odd tokens
are hard: only the pair 2 3 pays. No label says which is which. A linear classifier on the policy's own features looks
for the groups between which the objective varies most; R_var shows whether it has found any. The policy is trained
with PPO's clipped surrogate, minus beta times that variance, and held to the reference most where the best group is
likely.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import gipo_mc

VOCAB, PROMPT, RESPONSE, BATCH, GROUPS = 12, 4, 6, 64, 2
BETA, KL_COEF, CLIP, EPOCHS = 0.3, 0.02, 0.2, 2


def rewards_of(prompt_BP: Tensor, response_BT: Tensor) -> Tensor:
    """[B]: tokens 1 of an easy prompt's response, pairs 2 3 of a hard one's."""
    ones_B = (response_BT == 1).sum(1)
    pairs_B = ((response_BT[:, :-1] == 2) & (response_BT[:, 1:] == 3)).sum(1)
    return torch.where(prompt_BP[:, 0] % 2 == 0, ones_B, 2 * pairs_B).float()


def read(model: LlamaForCausalLM, sequence_BL: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probs of the response's tokens [B, T], features of the whole [B, H])."""
    outputs = model(sequence_BL, output_hidden_states=True)
    logp_BLV = outputs.logits[:, PROMPT - 1 : -1].log_softmax(-1)
    logp_BT = logp_BLV.gather(2, sequence_BL[:, PROMPT:, None])[:, :, 0]
    return logp_BT, outputs.hidden_states[-1].mean(1).detach()


def main(steps: int, beta: float = BETA) -> list[tuple[float, float]]:
    """Train; the mean reward of easy and of hard prompts in each step. beta 0: PPO, with one KL weight for all."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=PROMPT + RESPONSE, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    policy = LlamaForCausalLM(config)
    reference = copy.deepcopy(policy).requires_grad_(False)
    classifier = torch.nn.Linear(config.hidden_size, GROUPS)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    classifier_optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
    length_B, tokens = torch.full((BATCH,), RESPONSE), BATCH * RESPONSE
    history = []
    for step in range(steps):
        prompt_BP = 2 * torch.randint(VOCAB // 2, (BATCH, PROMPT)) + torch.randint(2, (BATCH, 1))
        with torch.no_grad():
            sequence_BL = policy.generate(
                prompt_BP, attention_mask=torch.ones_like(prompt_BP), do_sample=True, max_new_tokens=RESPONSE
            )
            behaviour_BT, feature_BH = read(policy, sequence_BL)
            reference_BT, _ = read(reference, sequence_BL)
        reward_B = rewards_of(prompt_BP, sequence_BL[:, PROMPT:])
        signal_B = (reward_B - reward_B.mean()) / reward_B.std().clamp(min=1e-6)

        # Group inference: the classifier goes where the variance of the objective between its groups is largest.
        probs_BM = classifier(feature_BH).softmax(-1)
        sums = probs_BM.sum(0), (probs_BM * signal_B[:, None]).sum(0)
        found = gipo_mc.group_variance(*sums, BATCH, weights="size")
        classifier_optimizer.zero_grad()
        (-found.variance).backward()
        classifier_optimizer.step()
        probs_BM, best = probs_BM.detach(), int(found.objective_M.argmax())

        # Classifier-weighted KL: each response is held by the probability that it belongs to the best group.
        kl_weight_B = gipo_mc.kl_weights(KL_COEF, probs_BM, best, "adaptive" if beta else "fixed")
        advantage_BT = signal_B[:, None].expand(BATCH, RESPONSE)
        for _ in range(EPOCHS):
            logp_BT, _ = read(policy, sequence_BL)
            objective = gipo_mc.group_objective(
                logp_BT, behaviour_BT, reference_BT, advantage_BT, length_B, probs_BM, signal_B, kl_weight_B,
                clip=CLIP, kl_estimator="k2", signal_form="ratio",
            )  # fmt: skip
            # All responses are of one length here; others need T_i / T beside the signal (docs/library.md).
            between = gipo_mc.group_variance(objective.mass_M, objective.weighted_M, BATCH, weights="size")
            loss = (objective.weighted_kl - objective.surrogate_B.sum()) / tokens + beta * between.variance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        easy_B = prompt_BP[:, 0] % 2 == 0
        history.append((float(reward_B[easy_B].mean()), float(reward_B[~easy_B].mean())))
        easy, hard = history[-1]
        print(f"step {step + 1:3d}  easy {easy:.2f}  hard {hard:.2f}  R_var {found.variance.item():.3f}")
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="steps [%(default)s]")
    parser.add_argument("--beta", type=float, default=BETA, help="weight of R_var; 0: PPO [%(default)s]")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.beta)
