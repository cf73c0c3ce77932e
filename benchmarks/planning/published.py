"""The plan's seconds by phase beside those of the closest published run.

    python benchmarks/planning/published.py

PPO of deepseek-llm-7b-chat (policy and critic, 6.9B) on GSM8K with verl at its commit 3fe77fa (2025-02): Megatron with
TP4 and sequence parallelism on 4 GPUs, vLLM with enforce_eager. Its log holds the command and the times of 104 steps:
https://github.com/eric-haibin-lin/verl-data, gsm8k/deepseek-llm-7b-chat-megatron-bsz256_4-prompt512-resp512-0.695.log.
The GPU is not named there; an A100 of 80 GB is taken, with the plan's default share of its peak.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gipo_mc.config import load_config  # noqa: E402
from gipo_mc.plan.hardware import Program, hardware  # noqa: E402
from gipo_mc.plan.plan import Plan, make_plan  # noqa: E402
from gipo_mc.plan.run import read_run  # noqa: E402

#: (prompt, response) tokens on average -> seconds by phase. The first is the run's usual step, 382 tokens/s/GPU; the
#: second its first step, with the longest responses.
STEPS = {
    (83, 133): {"rollout": 38.0, "behaviour_logprob": 11.0, "reference_logprob": 11.0, "values": 15.0,
                "update_critic": 38.0, "update_policy": 31.0},
    (82, 193): {"rollout": 50.2, "behaviour_logprob": 12.9, "reference_logprob": 12.3, "values": 17.0,
                "update_critic": 43.4, "update_policy": 35.9},
}  # fmt: skip
#: Rows of a micro-batch: 8 for both log-probs (that program gives the reference the policy's), 4 for all else.
ROWS = {"behaviour_logprob": 8, "reference_logprob": 8}
#: The two numbers that are fitted, each to something else than a phase's total.
#: layer: values take 256 passes and log-probs 128 over the same tokens. The 4.0 to 4.4 s between them are 128 passes of
#: 30 layers, 1.1 ms each.
#: row: from the first step to the last ones responses shrink from 193 to 129 tokens, and generation from 50.2 to 35.4
#: seconds: 0.23 ms a token, of which 0.03 are the plan's arithmetic.
VERL = Program("verl 3fe77fa with vLLM 0.6", layer=1.1e-3, row=0.20e-3, captured=False)


def plan_of(rows: int, prompt: int, response: int) -> Plan:
    """That run with micro-batches of so many rows."""
    config = load_config(
        None,
        [
            "model.policy=deepseek-llm-7b", "model.reward=python:tests.reward_functions:length", "data.prompts=[x]",
            "data.prompt_length=512", "rollout.max_new_tokens=512", "rollout.batch_size=1024", "parallel.tensor=4",
            "parallel.sequence=true", "algorithm.name=ppo", "algorithm.mini_batch_size=256",
            f"parallel.micro_batch_size={rows}",
        ],
    )  # fmt: skip
    run = read_run(config, prompt=prompt, response=response)
    return make_plan(run, 4, hardware("a100"), program=VERL)


def planned(prompt: int, response: int) -> dict[str, float]:
    """Phase -> seconds."""
    plans = {rows: plan_of(rows, prompt, response).cost or {} for rows in (4, 8)}
    return {name: plans[ROWS.get(name, 4)][name].seconds for name in next(iter(STEPS.values()))}


def table() -> str:
    """Markdown: both steps, run and plan."""
    heads = " | ".join(f"run, s, {p} + {r} tokens | plan, s | error" for p, r in STEPS)
    lines = [f"| phase | {heads} |", "| --- " * (1 + 3 * len(STEPS)) + "|"]
    plans = {lengths: planned(*lengths) for lengths in STEPS}
    for name in next(iter(STEPS.values())):
        cells = [
            f"{seconds[name]:g} | {plans[lengths][name]:.1f} | {plans[lengths][name] / seconds[name] - 1:+.0%}"
            for lengths, seconds in STEPS.items()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table())


if __name__ == "__main__":
    main()
