#!/usr/bin/env bash
# torch 2.13.0 (Linux, CPU): words of a program behind torchrun that have a dollar sign.
#
# Expected: what stands behind the program's name reaches it as it was typed, as behind `python`.
# Seen: each word passes through string.Template once for each rank: "$$" becomes "$", and "$local_rank" or
#   "${local_rank}" the rank. Other names stay. One rank or several, script, module or --no-python:
#       typed     'costs 5$$'   '$local_rank'   '${other}'
#       python    costs 5$$     $local_rank     ${other}
#       torchrun  costs 5$      0               ${other}
# Why it matters: a prompt template, a stop string, a regular expression or a password with "$$" on a command line is
#   another one in the ranks, without a word, and so is a run resumed by plain python beside one by torchrun.
# Here: gipo-mc launch, demo and paper double the signs of what they hand to torchrun (for_torchrun in
#   gipo_mc/tools/commands.py); a line that a user types reaches torchrun first.
# Met by accident in a test of such a command; no guess was written down before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 numpy==2.4.6 || { echo "pip could not install them."; exit 2; }
cat > words.py <<'PYTHON'
import json
import sys

print(json.dumps(sys.argv[1:]))
PYTHON
words=('costs 5$$' '$local_rank' '${other}')
alone=$(env/bin/python words.py "${words[@]}")
ranks=$(env/bin/python -m torch.distributed.run --standalone --nproc-per-node=1 words.py "${words[@]}" 2>/dev/null)
env/bin/python -c 'import torch; print("torch", torch.__version__)'
echo "python    $alone"
echo "torchrun  $ranks"
[ "$alone" = '["costs 5$$", "$local_rank", "${other}"]' ] || { echo "python itself changed the words."; exit 1; }
[ "$ranks" = '["costs 5$", "0", "${other}"]' ] || { echo "The behaviour changed."; exit 1; }
echo "As stated: torchrun rewrites the words of its program."
