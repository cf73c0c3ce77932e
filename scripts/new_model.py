"""Make a small model with random weights and a BPE tokenizer trained on your data, as a Hugging Face folder.

    python scripts/new_model.py --out models/tiny --data train.jsonl.gz --family qwen3

`gipo-mc new-model` from a checkout.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("new-model"))
