"""Who wins: responses of two policies or more to the same prompts, compared by models and by people.

    python scripts/evaluate.py judge --ours ours.jsonl --against sft=sft.jsonl --judge judge.yaml --out runs/eval
    python scripts/evaluate.py table runs/eval

Files of responses come from scripts/generate.py --out; docs/evaluation.md has the rest.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("evaluate"))
