"""`generate` of transformers: the whole batch at once, padded on the left, with its KV cache and torch's attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.rivals import material as rows_of
from benchmarks.rivals.loops import Generate, take_generation_turns, take_memory_turns
from benchmarks.rivals.protocol import Turns, versions
from benchmarks.rivals.units import Unit


def generation(material: Path, turns: Turns) -> None:
    take_generation_turns(turns, _generator(material), _about())


def memory(material: Path, turns: Turns) -> None:
    take_memory_turns(turns, lambda: _generator(material), _about())


def _about() -> dict[str, Any]:
    return {"versions": versions("torch", "transformers")}


def _generator(material: Path) -> Generate:
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
