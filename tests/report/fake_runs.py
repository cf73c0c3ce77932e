"""Runs that look like real ones, written through the real logger; their numbers are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gipo_mc.config import as_yaml, validate
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.metrics import MetricsLogger

PHASE_SECONDS = {
    "rollout": 1.4, "behaviour_logprob": 0.35, "reference_logprob": 0.34, "values": 0.4, "rewards": 0.3,
    "advantages": 0.01, "update_critic": 1.1, "update_policy": 1.0,
}  # fmt: skip


def rl_run(root: Path, name: str, algorithm: str, iterations: int, gold: bool = True, seed: int = 1) -> Path:
    """A run of gi_ppo, ppo or ppo_no_kl in which the reward rises and, without KL, the gold reward falls."""
    random = np.random.default_rng(seed)
    gi = algorithm == "gi_ppo"
    with RunFolder.open(root, name, "train_gi_ppo", resume=True) as folder, MetricsLogger(folder) as log:
        config = validate({"algorithm": {"name": algorithm}, "parallel": {"tensor": 2, "pipeline": 2}})
        folder.config.write_text(as_yaml(config))
        folder.write_about(
            [("policy", "llama, 4 layers of 64, 0.2 M parameters"), ("layout", "TP2 × PP2 × DP1 on 4 ranks"),
             ("device", "CPU, float32"), ("ops", "native"), ("data", "built-in task: 4,096 prompts")]
        )  # fmt: skip
        for step in range(1, iterations + 1):
            row, rewards = iteration(algorithm, step / iterations, random, gold)
            log.log(step, row)
            log.histogram(step, "reward", np.concatenate(list(rewards.values())))
            for domain, values in rewards.items():
                log.histogram(step, f"reward/domain/{domain}", values)
            if step in (1, iterations):
                log.samples(step, [sample(domain, rewards[domain][i], i, gi) for domain in rewards for i in range(4)])
        if gi:
            log.warn(iterations, "g_high changed from group 1 to group 0.")
        folder.write_status("done", 0, step=iterations)
    return folder.path


def iteration(
    algorithm: str, t: float, random: np.random.Generator, gold: bool
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and rewards by domain of the iteration at `t`, the finished part of the run."""
    gi = algorithm == "gi_ppo"
    rise = 1 - np.exp(-3 * t)
    top = {"gi_ppo": (1.0, 0.55), "ppo": (0.9, 0.3), "ppo_no_kl": (2.2, 0.35)}[algorithm]
    easy, hard = 0.45 + rise * (top[0] - 0.45), 0.07 + rise * (top[1] - 0.07)
    noise = random.normal(0, 0.05, 12)
    kl = {"gi_ppo": 3.0, "ppo": 2.0, "ppo_no_kl": 14.0}[algorithm] * rise
    rewards = {
        "easy": random.normal(easy, 0.3, 102).clip(-1, 3), "hard": random.normal(hard, 0.35, 26).clip(-1, 2)
    }  # fmt: skip
    pooled = np.concatenate(list(rewards.values()))
    row = {
        "reward/mean": pooled.mean(), "reward/std": pooled.std(),
        "reward/domain/easy": rewards["easy"].mean(), "reward/domain/hard": rewards["hard"].mean(),
        "kl/mean": max(0, kl + noise[0] * 3),
        "kl/weighted": max(0, 0.05 * kl * (0.6 if gi else 1) + noise[1] * 0.05),
        "kl/domain/easy": max(0, kl * 0.8), "kl/domain/hard": kl * 1.7,
        "policy/loss": -0.02 + noise[2] * 0.2, "policy/clip_fraction": abs(0.08 + noise[3] * 0.5),
        "policy/entropy": 2.3 - 1.1 * rise + noise[4], "policy/grad_norm": 0.8 + abs(noise[5]) * 4,
        "policy/ratio_max": 1.4 + abs(noise[6]) * 6,
        "critic/loss": 0.4 * np.exp(-4 * t) + 0.08 + abs(noise[7]) * 0.3,
        "critic/grad_norm": 1.5 + noise[8] * 6,
        "critic/explained_variance": 0.7 * (1 - np.exp(-6 * t)) - 0.1 + noise[9],
        "response/length": 6.5 + 1.5 * rise + noise[10], "response/truncated": 0.1 * (1 - rise),
        "rollout/logp_difference": 1e-7 * (1 + abs(noise[11])),
        "throughput/tokens_per_second": 1300 + 400 * noise[0],
        **{f"time/{phase}": s * (1 + abs(noise[1])) for phase, s in PHASE_SECONDS.items()},
    }  # fmt: skip
    if gi:
        row |= group_metrics(t, rise, easy, hard, kl, noise)
    if gold:
        row |= gold_metrics(algorithm, rise, easy, hard, noise)
    row["time/total"] = sum(value for key, value in row.items() if key.startswith("time/")) + 0.1
    return row, rewards


def group_metrics(t: float, rise: float, easy: float, hard: float, kl: float, noise: np.ndarray) -> dict[str, float]:
    """Metrics of two groups that come to be the domains."""
    mass = 0.5 + 0.27 * (1 - np.exp(-5 * t)) + noise[2] * 0.2
    return {
        "group/0/mass": mass, "group/1/mass": 1 - mass,
        "group/0/reward": easy - 0.03, "group/1/reward": hard + 0.07 + noise[3],
        "group/0/objective": 0.3 * rise + noise[4], "group/1/objective": -0.6 * rise + noise[5],
        "group/0/kl": kl * 0.8, "group/1/kl": kl * 1.6,
        "group/variance": 0.15 * rise + abs(noise[6]) * 0.2, "group/entropy": 0.69 - 0.4 * rise,
        "group/best": 0.0, "group/reward_correlation": 0.4 * rise + noise[7],
        "group/domain_auc": 0.5 + 0.4 * rise, "group/p_high": 0.6 + noise[1],
    }  # fmt: skip


def gold_metrics(algorithm: str, rise: float, easy: float, hard: float, noise: np.ndarray) -> dict[str, float]:
    """Gold rewards of the domains, and of one that training does not have."""
    true_easy = easy - 0.3 * rise if algorithm != "ppo_no_kl" else 0.45 - 0.9 * rise
    true_hard = hard - 0.1 * rise if algorithm != "ppo_no_kl" else 0.07 - 0.6 * rise
    return {
        "gold/mean": 0.8 * true_easy + 0.2 * true_hard + noise[8], "gold/domain/easy": true_easy + noise[8],
        "gold/domain/hard": true_hard + noise[9],
        "gold/domain/ood": 0.3 + rise * {"gi_ppo": 0.08, "ppo": -0.03, "ppo_no_kl": -0.6}[algorithm],
    }  # fmt: skip


def sample(domain: str, reward: float, number: int, groups: bool) -> dict:
    """One row of samples.jsonl."""
    row = {
        "prompt": f"Human: What is the best <b>way</b> to answer question {number}?\n\nAssistant:",
        "response": "c0 c1 c2 filler c1 c1\n& <script>alert(1)</script> HACK",
        "reward": float(reward), "domain": domain, "kl": 1.25, "length": 9,
    }  # fmt: skip
    return row | ({"group_probs": [0.8, 0.2] if domain == "easy" else [0.3, 0.7]} if groups else {})


def supervised_run(root: Path, name: str, command: str, steps: int) -> Path:
    """A run of train_sft, train_reward or train_dpo whose loss falls."""
    random = np.random.default_rng(2)
    pairs = command in ("train_reward", "train_dpo")
    start = np.log(2) if pairs else 3.2
    with RunFolder.open(root, name, command, resume=True) as folder, MetricsLogger(folder) as log:
        for step in range(1, steps + 1):
            loss = start * (0.45 + 0.55 * np.exp(-3 * step / steps)) + random.normal(0, 0.02)
            row = {"loss": loss, "lr": 1e-3 * (1 - step / steps), "grad_norm": 1 + abs(random.normal(0, 0.2))}
            row |= {"time/total": 0.21, "throughput/tokens_per_second": 8000.0}
            if pairs:
                row["accuracy"] = min(1, 0.5 + 0.3 * step / steps + random.normal(0, 0.04))
                row["margin"] = 0.5 * step / steps
            if command == "train_dpo":
                row |= {"reward/chosen": -0.3 * step / steps, "reward/rejected": -0.8 * step / steps}
                row |= {"logp/chosen": -40 - 3 * step / steps, "logp/rejected": -40 - 8 * step / steps}
            if step % max(1, steps // 5) == 0:
                row["eval/loss"] = loss + 0.05
                if pairs:
                    row["eval/accuracy"] = 0.5 + 0.25 * step / steps
            log.log(step, row)
        folder.write_status("done", 0, step=steps)
    return folder.path
