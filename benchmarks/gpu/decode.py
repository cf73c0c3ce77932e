"""Generation of a Llama of 1B in bfloat16, 64 responses at a time, beside transformers' generate, in one process.

    python benchmarks/gpu/decode.py [--device cuda] [--tiny] [--out FILE.json]

Both have random weights of the same shape, the same prompts and no end before the last token. Reported: milliseconds
of a position (without the prompts), seconds of a whole batch on both sides, in rounds that interleave them, and what it
takes until the first batch is done (kernels, plans, captured graphs).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common.machine import describe_machine
from benchmarks.common.record import write
from gipo_mc.config import ParallelConfig
from gipo_mc.generation.assemble import sampling_uniforms
from gipo_mc.generation.engine import Sampling
from gipo_mc.generation.megatron import MegatronEngine
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.parallel import runtime

#: Llama-3.2-1B's sizes.
ONE_BILLION = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 4096,
}  # fmt: skip
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the program out")
    parser.add_argument("--rounds", type=int, default=3, help="batches of each side that are measured [3]")
    parser.add_argument("--out", type=Path, help="write a JSON record")
    options = parser.parse_args()
    record = measure(options.device, tiny=options.tiny, rounds=options.rounds)
    for name in ("first_batch_s", "position_ms", "batch_s", "transformers_batch_s", "times_transformers"):
        print(f"{name:24} {record[name]:.4g}")
    if options.out:
        write(options.out, record)
    return 0


def measure(device: str, *, tiny: bool, rounds: int) -> dict[str, Any]:
    """The record of one comparison."""
    config = LlamaConfig(**(TINY if tiny else ONE_BILLION), tie_word_embeddings=False)
    rows, new = (4, 8) if tiny else (64, 128)
    layout = runtime.initialize(ParallelConfig(), device)  # type: ignore[arg-type]
    dtype = torch.bfloat16
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 33, rows) if tiny else rng.integers(64, 513, rows)
    prompts = [rng.integers(0, config.vocab_size - 1, count).tolist() for count in lengths]
    model = build_model(read_shape(config), layout, head="lm", dtype=dtype, trainable=False)
    engine = MegatronEngine(model, longest=int(max(lengths)) + new)
    never = config.vocab_size - 1  # is not drawn, so every response has its full length
    noise = sampling_uniforms(1, "decode", 1, range(rows), new)

    def ours(count: int) -> int:
        done = engine.generate(prompts, Sampling(count, never, known_ids=never), noise)
        return int(done.response_length_B.sum())

    theirs = _transformers(config, prompts, new, never, layout.device, dtype)
    first = _seconds(lambda: ours(new), layout.device)
    ours(1), theirs()
    sides: dict[str, list[float]] = {"ours": [], "prompts": [], "transformers": []}
    for _ in range(rounds):
        sides["ours"].append(_seconds(lambda: ours(new), layout.device))
        sides["prompts"].append(_seconds(lambda: ours(1), layout.device))
        sides["transformers"].append(_seconds(theirs, layout.device))
    batch, prefill, rival = (statistics.median(sides[name]) for name in ("ours", "prompts", "transformers"))
    return {
        "benchmark": "decode",
        "machine": describe_machine(),
        "device": device,
        "model": config.to_diff_dict() | {"dtype": "bfloat16"},
        "rows": rows,
        "prompt_tokens": int(sum(lengths)),
        "new_tokens": new,
        "first_batch_s": first,
        "position_ms": (batch - prefill) / (new - 1) * 1000,
        "batch_s": batch,
        "prompts_s": prefill,
        "transformers_batch_s": rival,
        "times_transformers": rival / batch,
        "rounds": sides,
    }


def _transformers(
    config: LlamaConfig, prompts: list[list[int]], new: int, never: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], Any]:
    """Its generate on the same prompts, padded on the left as it wants them."""
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype).eval()
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
    return lambda: model.generate(tokens, attention_mask=mask, eos_token_id=never, **options)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main())
