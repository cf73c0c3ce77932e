"""A byte-level tokenizer like those of chat models: many special tokens, of which only some are named."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|begin|>", "<|end|>", "<|reserved_0|>", "<|header|>", "<|turn|>"]
BEGIN, END, RESERVED, HEADER, TURN = range(len(SPECIAL))
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|header|>{{ m['role'] }}\n{{ m['content'] }}<|turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant\n{% endif %}"
)


def chat_tokenizer(
    special: list[str] | None = None, template: str | None = TEMPLATE, **named: Any
) -> PreTrainedTokenizerFast:
    """One id a byte behind those of `special`; BOS is <|begin|> and EOS <|end|> unless `named` says otherwise."""
    texts = SPECIAL if special is None else special
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate([*texts, *alphabet])}, merges=[]))
    core.add_special_tokens([AddedToken(text, special=True) for text in texts])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    named = {"bos_token": "<|begin|>", "eos_token": "<|end|>"} | named
    if named["bos_token"]:
        core.post_processor = processors.TemplateProcessing(
            single=f"{named['bos_token']} $A",
            special_tokens=[(named["bos_token"], texts.index(named["bos_token"]))],
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **named)
    tokenizer.chat_template = template
    return tokenizer
