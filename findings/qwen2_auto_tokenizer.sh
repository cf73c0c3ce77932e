#!/usr/bin/env bash
# transformers 5.23.0 (tokenizers 0.23.3): AutoTokenizer beside the config.json of a Qwen2.
#
# Expected: a folder whose tokenizer_config.json names the generic class (TokenizersBackend, which is
#   PreTrainedTokenizerFast) is loaded as its tokenizer.json says, whatever model's config.json lies beside it.
# Seen: beside a Qwen2 config, AutoTokenizer builds a Qwen2Tokenizer instead, without an error or a warning. It keeps
#   the vocabulary, replaces the pre-tokenizer by Qwen2's own (here one digit a word, so the merge of "123" is never
#   used) and adds <|endoftext|> under a new id, past an embedding of the saved size. Beside Llama, Mistral and
#   Qwen3, with no config.json, and with PreTrainedTokenizerFast.from_pretrained, the files load as written:
#       as saved                           259 ids  pad None             "123 cat" -> [257, 220, 66, 64, 83]
#       qwen2    AutoTokenizer             260 ids  pad '<|endoftext|>'  "123 cat" -> [16, 17, 18, 220, 66, 64, 83]
#       qwen2    PreTrainedTokenizerFast   259 ids  pad None             "123 cat" -> [257, 220, 66, 64, 83]
#       qwen3    AutoTokenizer             259 ids  pad None             "123 cat" -> [257, 220, 66, 64, 83]
#   transformers 4.57.6 saves the same tokenizer and loads it beside the same configs as written.
# Why it matters: a model with the Qwen2 architecture and a tokenizer of its own is trained on one tokenization and
#   served on another. Rewards and log-probabilities stay finite; only their quality suffers. Padding with the new id
#   indexes past the embedding.
# Here: gipo_mc.data.tokenizer.load_tokenizer takes PreTrainedTokenizerFast where tokenizer_config.json names the
#   generic class; tests/data/test_tokenizer.py, test_a_trained_bpe_..._survives_loading_beside_a_models_config, loads
#   one beside the config of every family.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q transformers==5.23.0 tokenizers==0.23.3 || { echo "pip could not install them."; exit 2; }
HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 env/bin/python -I - <<'PYTHON'
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
TEXT = "123 cat"
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
words = {character: i for i, character in enumerate(alphabet)} | {"12": 256, "123": 257, "</s>": 258}
core = Tokenizer(models.BPE(vocab=words, merges=[("1", "2"), ("12", "3")]))
core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
core.decoder = decoders.ByteLevel()
saved = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def facts(tokenizer):
    return len(tokenizer), tokenizer.pad_token, tokenizer(TEXT).input_ids


def show(name, loader, found):
    size, pad, ids = found
    print(f'{name:8} {loader:25} {size} ids  pad {pad!r:16} "{TEXT}" -> {ids}')


show("as saved", "", facts(saved))
other = set()
for config in (None, LlamaConfig, MistralConfig, Qwen3Config, Qwen2Config):
    name = config.model_type if config else "none"
    folder = Path(name)
    saved.save_pretrained(folder)
    if config:
        config().save_pretrained(folder)
    for loader in (AutoTokenizer, PreTrainedTokenizerFast):
        label = "AutoTokenizer" if loader is AutoTokenizer else "PreTrainedTokenizerFast"
        found = facts(loader.from_pretrained(folder))
        show(name, label, found)
        if found != facts(saved):
            other.add((name, label))
if other != {("qwen2", "AutoTokenizer")}:
    sys.exit(f"Changed: loaded otherwise than saved are now {sorted(other) or 'none'}, not AutoTokenizer beside Qwen2.")
if facts(AutoTokenizer.from_pretrained("qwen2")) != (260, "<|endoftext|>", [16, 17, 18, 220, 66, 64, 83]):
    sys.exit("Changed: beside a Qwen2 config AutoTokenizer gives other ids than those stated.")
print("As stated: only AutoTokenizer beside a Qwen2 config gives other ids than the saved tokenizer.")
PYTHON
