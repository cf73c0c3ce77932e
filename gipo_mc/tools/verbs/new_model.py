"""Make a small model with random weights and a BPE tokenizer trained on your data, as a Hugging Face folder.

    gipo-mc new-model --out models/tiny --data train.jsonl.gz [--vocab 2048] [--hidden 128] [--layers 4]
    gipo-mc new-model --out models/tiny --data train.jsonl.gz --family qwen3

For trying the whole pipeline on real text without a checkpoint. It knows nothing until it is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gipo_mc.errors import ConfigError, did_you_mean
from gipo_mc.run.arguments import Parser, name, number
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.waiting import importing, waiting
from gipo_mc.tools.output import MODEL_FILES, check_output


def parsers() -> dict[str, Parser]:
    parser = Parser("new-model", reports=True, description=__doc__)
    parser.add_argument("--out", type=name, required=True, help="folder to write")
    parser.add_argument(
        "--data", nargs="+", type=name, required=True, metavar="FILE", help="demonstrations, preferences or prompts"
    )
    parser.add_argument("--family", default="llama", help="of those in gipo_mc/models/families/ [llama]")
    parser.add_argument(
        "--vocab", type=number(259, 2**22), default=2048, help="largest vocabulary of the tokenizer [2048]"
    )
    parser.add_argument("--hidden", type=number(2, 2**16), default=128, help="hidden size [128]")
    parser.add_argument("--layers", type=number(1, 2**10), default=4, help="layers [4]")
    parser.add_argument("--heads", type=number(1, 2**10), default=4, help="attention heads [4]")
    parser.add_argument("--kv-heads", type=number(1, 2**10), default=2, help="key-value heads [2]")
    parser.add_argument("--positions", type=number(1, 2**24), default=512, help="longest sequence in tokens [512]")
    parser.add_argument("--chat", action="store_true", help="give the tokenizer a chat template [none]")
    parser.add_argument("--seed", type=number(0, 2**31 - 1), default=1, help="seed of the weights [1]")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that --out holds [refused]")
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = parsers()[""]
    return ended(lambda: _make(parser, parser.parse_args(words)))


def _make(parser: Parser, options: argparse.Namespace) -> int:
    for key, heads in (("--heads", options.heads), ("--kv-heads", options.kv_heads)):
        if (options.hidden if key == "--heads" else options.heads) % heads:
            parser.error(f"{key} {heads} does not divide {'--hidden' if key == '--heads' else '--heads'}")
    if builtin := next((source for source in options.data if source.partition(":")[0] == "builtin"), None):
        raise ConfigError(
            f"--data {builtin}: the built-in task has a model of its own, which gipo-mc train sft makes. Name files."
        )
    check_output(Path(options.out), MODEL_FILES, options.overwrite)
    with importing():
        from gipo_mc.config import validate
        from gipo_mc.models.families import FAMILIES
        from gipo_mc.run.jsonl import encode, printable
        from gipo_mc.tools.new_model import create_text_model

    if options.family not in FAMILIES:
        near = did_you_mean(options.family, FAMILIES)
        parser.error(f"argument --family: {options.family!r} is none of {', '.join(FAMILIES)}{near}")
    with waiting("Making the model") as progress:
        vocab = create_text_model(
            Path(options.out),
            validate({"data": {"demonstrations": options.data}}).data,
            options.vocab,
            options.seed,
            options.family,
            chat=options.chat,
            overwrite=options.overwrite,
            tell=progress.phase,
            hidden_size=options.hidden,
            intermediate_size=-(-options.hidden * 8 // 3 // 16) * 16,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            num_key_value_heads=options.kv_heads,
            head_dim=options.hidden // options.heads,
            max_position_embeddings=options.positions,
        )
    if options.json:
        made = {"model": options.out, "family": options.family, "layers": options.layers, "hidden": options.hidden}
        print(encode({**made, "vocabulary": vocab}))
    else:
        print(f"{printable(options.out)}: {options.layers} layers of {options.hidden}, vocabulary {vocab}")
    return 0
