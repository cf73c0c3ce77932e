"""A fresh model with random weights as a Hugging Face folder: what a run without any checkpoint starts from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from gipo_mc.config import DataConfig
from gipo_mc.data.chat import plain
from gipo_mc.data.examples import examples
from gipo_mc.data.formats import Example
from gipo_mc.data.named import sources_of
from gipo_mc.data.sets import SourceReport
from gipo_mc.data.tokenizer import train_bpe_tokenizer
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.models.families import FAMILIES, read_shape
from gipo_mc.run.model_files import save_files_of
from gipo_mc.tools.output import MODEL_FILES, check_output, new_folder

#: A turn begins with its role and ends with the token that ends a response.
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def create_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    family: str = "llama",
    *,
    overwrite: bool = False,
    **config: Any,
) -> None:
    """Save a randomly initialised language model of a family (safetensors) and its tokenizer in `folder`.

    config: arguments of the family's config in transformers; vocabulary and special tokens are the tokenizer's. The
    global random state is left as it was. The folder appears whole. overwrite: replace a model that is in the folder.
    Raises ConfigError where the folder holds something, StorageError.
    """
    highest, kind = max(tokenizer.get_vocab().values()), FAMILIES[family]
    shape = kind.new_config(
        **{
            "vocab_size": highest + 1,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **config,
        }
    )
    logging.disable_progress_bar()  # of a file that takes a moment
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.hf_class(kind.causal_lm)(shape)
    with new_folder(folder, MODEL_FILES, overwrite) as temporary:
        model.save_pretrained(temporary)
        save_files_of(read_shape(shape), tokenizer, temporary, "lm")


def create_text_model(
    folder: Path,
    data: DataConfig,
    vocab_size: int,
    seed: int,
    family: str = "llama",
    *,
    chat: bool = False,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda phase: None,
    **config: Any,
) -> int:
    """`create_model` with a byte-level BPE tokenizer trained on the demonstrations of `data`; returns its vocabulary.

    Of a source whose rows have no responses the prompts are enough. chat: give the tokenizer `CHAT`. tell: called with
    what is done next, in words. Raises DataError where a source cannot be read, ConfigError where memory is too small.
    """
    _check_memory(vocab_size, **config)
    check_output(folder, MODEL_FILES, overwrite)  # before minutes of reading
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = train_bpe_tokenizer(_texts(data, tell), vocab_size, scratch)
    if chat:
        tokenizer.chat_template = CHAT
    tell("drawing weights and writing them")
    create_model(folder, tokenizer, seed, family, overwrite=overwrite, **config)
    return len(tokenizer)


def _check_memory(vocab: int, *, hidden_size: int, intermediate_size: int, num_hidden_layers: int, **_: Any) -> None:
    """Raises ConfigError where the weights alone, four bytes each, need more memory than there is."""
    layer = 4 * hidden_size**2 + 3 * hidden_size * intermediate_size
    needed, available = 4 * (2 * vocab * hidden_size + num_hidden_layers * layer), psutil.virtual_memory().available
    if needed > available:
        raise ConfigError(
            f"{num_hidden_layers} layers of {hidden_size} with a vocabulary of {vocab} take {needed / 2**30:,.0f} GiB, "
            f"and {available / 2**30:,.0f} GiB of memory are free: make the model smaller."
        )


def _texts(data: DataConfig, tell: Callable[[str], None]) -> Iterator[str]:
    sources = sources_of(data, "demonstrations")
    for number, source in enumerate(sources, start=1):
        tell(f"reading {source}" + (f" ({number} of {len(sources)})" if len(sources) > 1 else ""))
        for example in _examples(source, data):
            prompt = example.prompt if isinstance(example.prompt, str) else plain(example.prompt)
            yield f"{prompt} {example.chosen}".rstrip()
    tell("training the tokenizer")


def _examples(source: str, data: DataConfig) -> Iterator[Example]:
    found = examples(source, "demonstrations", "", data, SourceReport(source))
    try:
        first = next(found, None)
    except DataError as error:
        prompts = examples(source, "prompts", "", data, SourceReport(source))
        try:
            first, found = next(prompts, None), prompts
        except DataError:
            raise error from None
    if first is not None:
        yield first
        yield from found
