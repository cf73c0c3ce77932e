"""What transformers makes of a folder. Runs under any version of it, so it imports nothing else of this package.

PYTHON -I hf_reader.py FOLDER QUESTIONS.json ANSWERS.safetensors
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

#: Either of these makes a folder one with a tokenizer.
TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@torch.no_grad()
def answer(folder: Path, questions: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts about the model in `folder`, in float32.

    questions: "head", "lm" or "reward"; "tokens", equally long rows of ids; "rows", any rows of ids; "texts".
    Tensors: "outputs", logits [B, L, V] or the score of every prefix [B, L], of "tokens". Of a reward model "alone"
    [n], the score of each of "rows", and "padded" [n], that of all in one right-padded batch, where there is a padding
    token. Facts: "version"; "end_ids", which end a generation; "ids" of "texts", where there is a tokenizer; "padding",
    the id that it pads with; "pad_id" of config.json.
    """
    language = questions["head"] == "lm"
    kind: Any = transformers.AutoModelForCausalLM if language else transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True).eval()
    pad_id = model.config.pad_token_id
    facts: dict[str, Any] = {"version": transformers.__version__, "padding": pad_id, "pad_id": pad_id}
    if any((folder / name).is_file() for name in TOKENIZERS):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        facts["ids"] = [tokenizer(text, add_special_tokens=False).input_ids for text in questions["texts"]]
        facts["padding"] = tokenizer.pad_token_id
    tokens_BL = torch.tensor(questions["tokens"])
    if language:
        facts["end_ids"] = model.generation_config.eos_token_id
        return {"outputs": model(tokens_BL).logits}, facts
    tensors = {"outputs": model.score(model.model(tokens_BL).last_hidden_state).squeeze(-1).contiguous()}
    rows = questions["rows"]
    tensors["alone"] = torch.cat([model(torch.tensor([row])).logits[:, 0] for row in rows])
    if facts["padding"] is not None and pad_id is not None:
        longest = max(map(len, rows))
        padded = torch.tensor([row + [facts["padding"]] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        tensors["padded"] = model(padded, attention_mask=mask).logits[:, 0].contiguous()
    return tensors, facts


if __name__ == "__main__":
    found, said = answer(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    save_file(found, sys.argv[3], metadata={"facts": json.dumps(said)})
