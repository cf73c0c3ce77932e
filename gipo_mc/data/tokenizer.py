"""Tokenizers: loading one, checking it against a model, training a small one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gipo_mc.config import check_regular
from gipo_mc.data.special_tokens import PADDING, end_of_turn
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.parallel.imports.model_names import import_model

#: A tokenizer that covers less of the model's vocabulary than this is probably another model's.
_COVERED = 0.9


def load_tokenizer(
    path: str, tell: Callable[[str], None] | None = None, *, chat_template: bool = False
) -> PreTrainedTokenizerBase:
    """Tokenizer of an HF folder or hub name. It has an EOS token, and a padding id within its vocabulary.

    tell: called with a sentence where the folder's add_bos_token or add_eos_token says something else than its
    tokenizer.json. transformers 5 does not read them then; here add_bos_token is followed.

    A missing padding token becomes one that the vocabulary reserves for it, else the unknown token, else EOS: never a
    new id, which the model would have no row for. Lengths, not padding ids, say where a sequence ends in this package.
    A text has the same ids each time and on every rank: BPE dropout, a setting of the tokenizer's own training, is off.
    chat_template: for dialogues rendered with its chat template: where that ends a turn with another special token
    than the EOS (ChatML on a base model's tokenizer), that token becomes the EOS.
    Raises ConfigError. No code from the folder is run.
    """
    folder = Path(os.path.expanduser(path))  # unlike Path's, it leaves the name of an unknown user
    if not path:
        raise ConfigError("No tokenizer is given: set model.tokenizer (or model.policy) to a folder or a hub name.")
    if folder.is_dir():
        check_regular(folder)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ConfigError(
            f"There is no tokenizer in {path} (neither tokenizer.json nor tokenizer.model): save it there with "
            "tokenizer.save_pretrained, or set model.tokenizer to the folder that has it."
        )
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ConfigError(f"There is no folder {path}: correct model.tokenizer (or model.policy).")
    try:
        kind = PreTrainedTokenizerFast if _generic(folder) else import_model("auto").AutoTokenizer
        tokenizer = kind.from_pretrained(str(folder) if folder.exists() else path, trust_remote_code=False)
    except Exception as error:  # transformers and the tokenizers' own reader raise what they please, a bare one too
        raise ConfigError(f"The tokenizer {path} cannot be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"The tokenizer {path} has no end-of-sequence token, so no response could end: "
            "set eos_token in its tokenizer_config.json."
        )
    template = tokenizer.chat_template
    if any(
        not isinstance(text, str) for text in (template.values() if isinstance(template, dict) else [template or ""])
    ):
        raise ConfigError(
            f"The tokenizer {path} has a chat template that is no text: correct chat_template in its "
            "tokenizer_config.json, or take it out."
        )
    for sentence in _follow_settings(tokenizer, path):
        if tell:
            tell(sentence)
    if chat_template and (ending := end_of_turn(tokenizer)):
        tokenizer.eos_token = ending
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        reserved = next((token for token in PADDING if token in vocabulary), None)
        tokenizer.pad_token = reserved or tokenizer.unk_token or tokenizer.eos_token
    core = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(core, "dropout", None):
        core.dropout = None  # type: ignore[union-attr]
    return tokenizer


def _generic(folder: Path) -> bool:
    """Does tokenizer.json say everything? Beside the config.json of a Qwen2, `AutoTokenizer` does not believe it and
    gives every tokenizer the words, special tokens and pre-tokenizer of Qwen2's own."""
    fields = _tokenizer_config(folder)
    generic = fields.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return generic and (folder / "tokenizer.json").is_file()


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json of a folder; empty where it has none that can be read: transformers says so."""
    try:
        fields = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _follow_settings(tokenizer: PreTrainedTokenizerBase, path: str) -> list[str]:
    """Let add_bos_token of tokenizer_config.json decide over the post-processor of tokenizer.json, as transformers 4
    did; sentences on what that means."""
    folder = Path(os.path.expanduser(path))
    if not folder.exists():  # a hub name, whose files have just been downloaded
        cached = try_to_load_from_cache(path, "tokenizer_config.json")
        folder = Path(cached).parent if isinstance(cached, str) else folder
    fields = _tokenizer_config(folder)
    wanted, eos = fields.get("add_bos_token"), fields.get("add_eos_token")
    ids = tokenizer("")["input_ids"]
    has_bos = ids[:1] == [tokenizer.bos_token_id]
    has_eos = bool(ids[has_bos:]) and ids[-1] == tokenizer.eos_token_id
    told = []
    if isinstance(wanted, bool) and wanted != has_bos:
        if tokenizer.bos_token_id is None:
            told.append(
                f"The tokenizer {path} says add_bos_token=true but has no BOS token: prompts begin without one."
            )
        else:
            tokenizer.add_bos_token, tokenizer.add_eos_token = wanted, has_eos
            told.append(
                f"The tokenizer {path} says add_bos_token={str(wanted).lower()} in its tokenizer_config.json, and is "
                "followed, though its tokenizer.json says otherwise: plain prompts begin "
                f"{'with' if wanted else 'without'} {tokenizer.bos_token}. transformers 5 does the opposite."
            )
    if eos is True and not has_eos:
        told.append(
            f"The tokenizer {path} says add_eos_token=true: no prompt ends with {tokenizer.eos_token} here, because a "
            "response follows it, and every whole response does."
        )
    return told


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, model: str = "the model") -> str:
    """Check that the tokenizer's ids exist in a model of `vocab_size`; returns a warning, or "".

    Raises ConfigError where an id has no row in the embedding. A model may have more rows than the tokenizer has ids
    (rows that fill up to a round number); a great many more is worth the warning that is returned.
    """
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    name = tokenizer.name_or_path or "the tokenizer"
    if highest >= vocab_size:
        raise ConfigError(
            f"The tokenizer ({name}) has ids up to {highest} ({token!r}), but {model} a vocabulary of {vocab_size}, so "
            "they do not belong together. Set model.tokenizer to the tokenizer the model was trained with."
        )
    if highest + 1 < _COVERED * vocab_size:
        return (
            f"The tokenizer ({name}) has {highest + 1} ids, {model} a vocabulary of {vocab_size}: is it the "
            "tokenizer the model was trained with?"
        )
    return ""


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Do two tokenizers give the same ids the same meaning?"""
    return one is other or (one.get_vocab() == other.get_vocab() and one.eos_token_id == other.eos_token_id)


def tokens_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (its first 16 digits) of what `same_tokens` compares."""
    meaning = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:16]


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocab_size` ids (<s> 0, </s> 1, <pad> 2), trained on `texts`, saved in `folder`.

    Needs vocab_size >= 259 (256 bytes and the three). Any text can be encoded; decoding gives it back unchanged.
    """
    special = ["<s>", "</s>", "<pad>"]
    smallest = 256 + len(special)
    if vocab_size < smallest:
        raise ConfigError(f"A byte-level tokenizer needs a vocabulary of at least {smallest}, not {vocab_size}.")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(token, special=True) for token in special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    try:
        tokenizer.save_pretrained(str(folder))
    except OSError as error:
        raise DataError(f"The tokenizer cannot be written to {folder}: {error}") from error
    return tokenizer
