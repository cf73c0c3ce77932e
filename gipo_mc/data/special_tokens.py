"""Which tokens end a response and which one pads, and a tokenizer saved so that they are read the same everywhere."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gipo_mc.errors import StorageError
from gipo_mc.parallel.limits import limited

#: Tokens that checkpoints reserve for padding, tried in this order where the tokenizer names none.
PADDING = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>")
#: Texts of other special tokens that no text is made of.
_RESERVED = re.compile(r"pad|reserved|unused", re.IGNORECASE)
_QUESTION, _ANSWER = "question", "answer"


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that the chat template writes behind an assistant's message; None where there is no template,
    or no such token, or where it is broken."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        with limited(f"The chat template of {tokenizer.name_or_path or 'the tokenizer'}"):  # it may loop for ever
            text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template may raise anything: whoever renders with it is told what
        return None
    assert isinstance(text, str)  # tokenize=False returns text
    _, found, ending = text.rpartition(_ANSWER)
    places = {token: ending.find(token) for token in _special(tokenizer)} if found else {}
    return min((token for token, place in places.items() if place >= 0), key=lambda token: places[token], default=None)


def turn_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Added tokens that the tokenizer declares as ordinary text, and its chat template writes around a user's message:
    what a person types must not become them either. Empty where the template refuses, or is broken."""
    ordinary = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
    if not ordinary or not tokenizer.chat_template:
        return ()
    try:
        with limited(f"The chat template of {tokenizer.name_or_path or 'the tokenizer'}"):
            text = tokenizer.apply_chat_template([{"role": "user", "content": _QUESTION}], tokenize=False)
    except Exception:  # as in `end_of_turn`
        return ()
    return tuple(token for token in ordinary if token in str(text).replace(_QUESTION, "\n"))


def end_ids(tokenizer: PreTrainedTokenizerBase, of_model: Sequence[int] = ()) -> tuple[int, ...]:
    """Every id that ends a response, each once: those of the model's folder (`ModelShape.end_ids`), the tokenizer's
    EOS, the chat template's end of turn."""
    turn = end_of_turn(tokenizer)
    own = [tokenizer.eos_token_id] + ([tokenizer.convert_tokens_to_ids(turn)] if turn else [])
    return tuple(dict.fromkeys((*of_model, *own)))


def reward_padding(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> int | None:
    """The pad id to export with a reward head that was trained at the last token: one that is never the last.

    transformers reads a reward at the last token that is not the pad id, so none of `ends` will do. The first of these
    that the vocabulary has: the tokenizer's own padding, a reserved token, BOS, the unknown token; else None, with
    which transformers reads the last token of one text at a time and refuses batches.
    """
    vocabulary, unknown = tokenizer.get_vocab(), tokenizer.unk_token
    reserved = [token for token in _special(tokenizer) if _RESERVED.search(token)]
    # An unknown word may be the last of a response that was cut.
    names = [tokenizer.pad_token, *PADDING, *reserved, tokenizer.bos_token]
    for token in [*(name for name in names if name != unknown), unknown]:
        if token in vocabulary and vocabulary[token] not in ends:
            return int(vocabulary[token])
    return None


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, pad_id: int | None) -> None:
    """Save with the padding token `pad_id` (None: without one), in a form that transformers 4.57 reads as 5 does.

    Raises StorageError.
    """
    if tokenizer.pad_token_id != pad_id:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = None if pad_id is None else tokenizer.convert_ids_to_tokens(pad_id)
    path = folder / "tokenizer_config.json"
    try:
        tokenizer.save_pretrained(folder)
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if fields.get("tokenizer_class") == "TokenizersBackend":
            fields["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name before version 5, which knows both
        if isinstance(fields.get("extra_special_tokens"), list):
            fields["additional_special_tokens"] = fields.pop("extra_special_tokens")  # likewise
        # Version 5 leaves these out beside a tokenizer.json, and version 4 then adds the BOS of the class's default.
        ids = tokenizer("")["input_ids"]
        fields["add_bos_token"] = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
        fields["add_eos_token"] = ids[fields["add_bos_token"] :][-1:] == [tokenizer.eos_token_id]
        path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"The tokenizer cannot be written to {folder}: {error}") from error


def _special(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of the special tokens, those without a name included, in the order of their ids."""
    added = sorted(tokenizer.added_tokens_decoder.items())
    return [token.content for _, token in added if token.special or token.content in tokenizer.all_special_tokens]
