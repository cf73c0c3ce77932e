"""`generate` of transformers: the whole batch at once, padded on the left, with its KV cache and torch's attention."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.rivals import material as rows_of
from benchmarks.rivals.protocol import Turns, forget_peak, resident_bytes, versions
from benchmarks.rivals.units import GENERATION, Unit


def generation(material: Path, turns: Turns) -> None:
    generate = _generator(material)
    for unit in GENERATION.values():
        generate(unit, 0)
    done, step = {"versions": versions("torch", "transformers")}, 0
    while True:
        unit = GENERATION[turns.wait(**done)]
        step += 1
        done = generate(unit, step)


def memory(material: Path, turns: Turns) -> None:
    _generator(material)(GENERATION["sampled"], 0)
    done: dict[str, Any] = {"versions": versions("torch", "transformers")}
    while True:
        turns.wait(**done)
        forget_peak()
        idle = resident_bytes()
        generate = _generator(material)
        forget_peak()
        done = generate(GENERATION["sampled"], 1) | {"extra_bytes": resident_bytes("VmHWM") - idle}
        del generate
        gc.collect()


def _generator(material: Path) -> Callable[[Unit, int], dict[str, Any]]:
    model = AutoModelForCausalLM.from_pretrained(material / "model", dtype=torch.float32, attn_implementation="sdpa")
    model.eval()
    model.generation_config.eos_token_id = None  # every response has full length
    prompts, pad = rows_of.prompts(material, "generation"), rows_of.read(material)["pad"]

    @torch.inference_mode()
    def generate(unit: Unit, step: int) -> dict[str, Any]:
        torch.manual_seed(step)
        chosen = prompts[: unit.prompts]
        longest = max(map(len, chosen))
        tokens = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in chosen])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in chosen])
        found = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=unit.top_p,
            num_return_sequences=unit.samples,
            max_new_tokens=rows_of.NEW_TOKENS,
            pad_token_id=pad,
        )
        return {"tokens": found[:, longest:].numel(), "responses": len(found)}

    return generate
