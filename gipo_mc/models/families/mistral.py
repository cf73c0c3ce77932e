"""Mistral 7B (arXiv:2310.06825) and its successors under the same model_type: a Llama that may see through a window."""

from __future__ import annotations

from typing import Any, ClassVar

from gipo_mc.models.families.base import Family


class Mistral(Family):
    """Without the sliding window, which version 0.2 and later models do not have (null in config.json)."""

    model_type = "mistral"
    hf_name = "Mistral"
    hf_fields: ClassVar = {"sliding_window": None}  # transformers' default is 4096

    def refused(self, config: Any) -> list[str]:
        problems, window = super().refused(config), config.sliding_window
        if window is not None:
            problems.append(
                f"sliding_window={window} (4096 where config.json does not have the key): attention over a sliding "
                f"window is not supported. Sequences of up to {window} tokens do not need it: set sliding_window to "
                f"null and max_position_embeddings to {window} in config.json"
            )
        return problems
