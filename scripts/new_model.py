"""Make a small model with random weights and a BPE tokenizer trained on your data, as a Hugging Face folder.

    python scripts/new_model.py --out models/tiny --data train.jsonl.gz [--vocab 2048] [--hidden 128] [--layers 4]
    python scripts/new_model.py --out models/tiny --data train.jsonl.gz --family qwen3

For trying the whole pipeline on real text without a checkpoint. It knows nothing until it is trained.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gipo_mc.config import validate
from gipo_mc.errors import GipoError
from gipo_mc.models.families import FAMILIES
from gipo_mc.run.command import report_error
from gipo_mc.tools.new_model import create_text_model


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="preference or demonstration files")
    parser.add_argument("--family", choices=list(FAMILIES), default="llama", help="family of models [llama]")
    parser.add_argument("--vocab", type=int, default=2048, help="largest vocabulary of the tokenizer [2048]")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size [128]")
    parser.add_argument("--layers", type=int, default=4, help="layers [4]")
    parser.add_argument("--heads", type=int, default=4, help="attention heads [4]")
    parser.add_argument("--kv-heads", type=int, default=2, help="key-value heads [2]")
    parser.add_argument("--positions", type=int, default=512, help="longest sequence in tokens [512]")
    parser.add_argument("--seed", type=int, default=1, help="seed of the weights [1]")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that --out holds [refused]")
    options = parser.parse_args()
    try:
        vocab = create_text_model(
            options.out,
            validate({"data": {"demonstrations": options.data}}).data,
            options.vocab,
            options.seed,
            options.family,
            overwrite=options.overwrite,
            hidden_size=options.hidden,
            intermediate_size=-(-options.hidden * 8 // 3 // 16) * 16,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            num_key_value_heads=options.kv_heads,
            head_dim=options.hidden // options.heads,
            max_position_embeddings=options.positions,
        )
    except GipoError as error:
        return report_error(error)
    print(f"{options.out}: {options.layers} layers of {options.hidden}, vocabulary {vocab}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
