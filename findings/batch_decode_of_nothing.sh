#!/usr/bin/env bash
# transformers 5.23.0, beside 4.57.6: batch_decode of an empty batch.
#
# Expected: one text for each row, so none for no rows: batch_decode([]) == [], as in version 4, and as
#   len(batch_decode(rows)) == len(rows) holds for every other number of rows.
# Seen: version 5.23.0 gives [''], one empty text; version 4.57.6 gives []. No error, no warning.
# Why it matters: filters leave empty batches (no response that ended, no prompt that was new). What is zipped with the
#   texts raises or is cut, what is extended by them (a list of rewards, of judged answers) is one longer than its ids.
# Here: Encoder.texts in gipo_mc/data/encode.py decodes one row more than it is asked for and takes it off again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 5.23.0 4.57.6; do
    "${PYTHON:-python3}" -m venv "env-$version"
    "env-$version/bin/pip" install -q "transformers==$version" || { echo "pip could not install them."; exit 2; }
done
export HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1

cat > decode.py <<'PYTHON'
import sys

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

core = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="b")
for rows in ([[0, 1], [1]], [[0]], []):
    print(f"{transformers.__version__}  {len(rows)} rows -> {tokenizer.batch_decode(rows)}")
sys.exit(0 if tokenizer.batch_decode([]) == [""] else 1)
PYTHON

env-4.57.6/bin/python -I decode.py && { echo "Version 4.57.6 gives one text, too: the behaviour is another one now."; exit 1; }
env-5.23.0/bin/python -I decode.py || { echo "Version 5.23.0 gives no text: the behaviour changed."; exit 1; }
