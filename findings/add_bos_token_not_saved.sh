#!/usr/bin/env bash
# transformers 5.23.0 writes, transformers 4.57.6 reads: add_bos_token of a Llama tokenizer.
#
# Expected: a tokenizer whose tokenizer_config.json says add_bos_token=false, loaded and saved again, still adds no BOS.
# Seen: save_pretrained of version 5 leaves add_bos_token out, as the post-processor in tokenizer.json says the same.
#   LlamaTokenizerFast of version 4 builds its post-processor from add_bos_token, which is true where nothing is said.
#   No error, no warning:
#       the folder                     read by 5.23.0   read by 4.57.6
#       add_bos_token: false           [3, 4]           [3, 4]
#       loaded and saved by 4.57.6     [3, 4]           [3, 4]
#       loaded and saved by 5.23.0     [3, 4]           [0, 3, 4]
# Why it matters: a model trained without BOS by version 5 is served with one by version 4, in front of every prompt;
#   with a chat template that writes BOS itself, there are two. The tokenizer files are the ones its training saved.
# Here: gipo_mc follows add_bos_token (tests/data/test_tokenizer.py, test_add_bos_token_is_followed_and_said_once).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 5.23.0 4.57.6; do
    "${PYTHON:-python3}" -m venv "env-$version"
    "env-$version/bin/pip" install -q "transformers==$version" || { echo "pip could not install them."; exit 2; }
done
export HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 TRANSFORMERS_VERBOSITY=error

cat > make.py <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer, models

Path("given").mkdir()
vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4}
Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")).save("given/tokenizer.json")
config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
config |= {"add_bos_token": False, "add_eos_token": False}
Path("given/tokenizer_config.json").write_text(json.dumps(config))
PYTHON
cat > save.py <<'PYTHON'
import transformers

tokenizer = transformers.AutoTokenizer.from_pretrained("given")
tokenizer.save_pretrained(f"saved-by-{transformers.__version__}")
PYTHON
cat > read.py <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers

for folder in ("given", "saved-by-4.57.6", "saved-by-5.23.0"):
    ids = transformers.AutoTokenizer.from_pretrained(folder)("ab").input_ids
    said = json.loads(Path(folder, "tokenizer_config.json").read_text()).get("add_bos_token", "not said")
    print(f"read by {transformers.__version__}  {folder:16} add_bos_token: {said!s:9} ab -> {ids}")
    again = folder == "saved-by-5.23.0" and transformers.__version__ == "4.57.6"
    if ids != ([0, 3, 4] if again else [3, 4]):
        sys.exit("Changed: other ids than those stated.")
PYTHON
env-4.57.6/bin/python -I make.py
for version in 4.57.6 5.23.0; do "env-$version/bin/python" -I save.py; done
for version in 4.57.6 5.23.0; do "env-$version/bin/python" -I read.py; done
echo "As stated: version 4 adds the BOS that version 5 was told, and saved, not to add."
