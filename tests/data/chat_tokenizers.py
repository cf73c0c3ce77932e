"""Byte-level tokenizers with chat templates, small and made in memory. As in published models the tokens of a
template's headers are special, but only BOS and EOS have names."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m['role'] + '<|body|>' + m['content'] + '<|over|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|body|>{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(
    special: tuple[str, ...], *, bos: str | None, eos: str, template: str | None, words: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A token for each byte, then `special` ones, then `words`: added tokens that are ordinary text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    core.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    if bos:
        number = core.token_to_id(bos)
        core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    names = {"bos_token": bos} if bos else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token="<|pad|>", clean_up_tokenization_spaces=False, **names
    )
    tokenizer.chat_template = template
    return tokenizer


def headers_tokenizer(template: str | None = HEADERS, eos: str = "<|over|>") -> PreTrainedTokenizerFast:
    """Turns between <|head|>, <|body|> and <|over|>, the last of which is EOS."""
    special = ("<|begin|>", "<|pad|>", "<|head|>", "<|body|>", "<|over|>", "<|end|>")
    return byte_tokenizer(special, bos="<|begin|>", eos=eos, template=template, words=("<think>", "</think>"))


def chatml_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Turns between <|im_start|> and <|im_end|>, which is EOS; no BOS."""
    special = ("<|pad|>", "<|im_start|>", "<|im_end|>")
    return byte_tokenizer(special, bos=None, eos="<|im_end|>", template=template)
