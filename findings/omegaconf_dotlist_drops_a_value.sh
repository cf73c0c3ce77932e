#!/usr/bin/env bash
# omegaconf 2.4.0: OmegaConf.from_dotlist with a key that is given a value and, further on, a child.
#
# Expected: an error, as a key cannot be 3 and a group at once; or a warning that one of the two is dropped.
# Seen: the value is dropped without a word; in the other order the group is. So it is with merge, where the value comes
#   from a file. merge_with_dotlist into a config with the struct flag raises, but names the child as unknown:
#       from_dotlist(['run=3', 'run.dir=x'])                 {'run': {'dir': 'x'}}
#       from_dotlist(['run.dir=x', 'run=3'])                 {'run': 3}
#       merge({'run': 3}, from_dotlist(['run.dir=x']))       {'run': {'dir': 'x'}}
# Why it matters: these lists are the command line of a training script. `reward=model.pt reward.scale=2`, or an option
#   that became a group in a new version, starts a run without the value that its command names.
# Here: gipo_mc looks at each word of a command by itself and says that a section takes no value
#   (tests/config/test_load.py, the case "run=3").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q omegaconf==2.4.0 || { echo "pip could not install it."; exit 2; }
env/bin/python -I -W error - <<'PYTHON'
import sys

import omegaconf
from omegaconf import OmegaConf

print("omegaconf", omegaconf.__version__)
wanted = {("run=3", "run.dir=x"): {"run": {"dir": "x"}}, ("run.dir=x", "run=3"): {"run": 3}}
for words, config in wanted.items():
    seen = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    print(f"from_dotlist({list(words)}) -> {seen}")
    if seen != config:
        sys.exit(f"Changed: it was {config}.")
seen = OmegaConf.to_container(OmegaConf.merge({"run": 3}, OmegaConf.from_dotlist(["run.dir=x"])))
print(f"merge with run: 3 -> {seen}")
if seen != {"run": {"dir": "x"}}:
    sys.exit("Changed: merge no longer drops the value.")
print("As stated: of a value and a child of one key, the first is dropped without an error or a warning.")
PYTHON
