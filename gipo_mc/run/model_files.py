"""What lies beside the weights of a saved model: its configuration and its tokenizer, in agreement."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from gipo_mc.data.special_tokens import end_ids, reward_padding, save_tokenizer
from gipo_mc.models.hf_files import Tokens, save_config
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import HeadKind, StageModel


def tokens_of(shape: ModelShape, tokenizer: PreTrainedTokenizerBase, head: HeadKind) -> Tokens:
    """The special ids of a model that is saved with its tokenizer.

    A reward model that is read at its last token (`shape.pad_token_id` None) gets a pad id that is never the last, so
    that transformers reads it there, too. Any other reward model keeps the pad id that it is read by.
    """
    ends = end_ids(tokenizer, shape.end_ids)
    pad_id = tokenizer.pad_token_id
    if head == "reward":
        pad_id = reward_padding(tokenizer, ends) if shape.pad_token_id is None else shape.pad_token_id
    return Tokens(tokenizer.eos_token_id, ends, pad_id)


def save_model_files(model: StageModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`save_files_of` a model. Raises OSError, StorageError."""
    save_files_of(model.shape, tokenizer, folder, model.head)


def save_files_of(shape: ModelShape, tokenizer: PreTrainedTokenizerBase, folder: Path, head: HeadKind) -> None:
    """Write config.json, generation_config.json and the tokenizer into `folder`. Raises OSError, StorageError."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = tokens_of(shape, tokenizer, head)
    save_config(shape, folder, head, tokens)
    save_tokenizer(tokenizer, folder, tokens.pad_id)
