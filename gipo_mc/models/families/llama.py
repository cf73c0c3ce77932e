"""Llama 1, 2 and 3 (arXiv:2302.13971, 2307.09288, 2407.21783), and models that call themselves one."""

from __future__ import annotations

from typing import Any

from gipo_mc.models.families.base import Family


class Llama(Family):
    """No biases; transformers can give a Llama some, which no published one has."""

    model_type = "llama"
    hf_name = "Llama"

    def refused(self, config: Any) -> list[str]:
        return super().refused(config) + [
            f"{key}=true: only Llamas without biases are supported"
            for key in ("attention_bias", "mlp_bias")
            if getattr(config, key)
        ]
