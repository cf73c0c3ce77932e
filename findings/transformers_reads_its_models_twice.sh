#!/usr/bin/env bash
# transformers 5.23.0, beside 4.57.6: files of models that are read before a tokenizer is.
#
# Expected: the package is imported lazily, so `import transformers` opens none of the files of its models, the first
#   `AutoTokenizer` opens those that it is made of, and whatever was read for the names of classes is read once.
# Seen, in both versions: `import transformers` opens every file of every model (1,669 in version 5) and looks through
#   its text; the first class of a model, such as AutoTokenizer, makes it open all of them a second time. What was found
#   is kept for each folder by functools.lru_cache, which holds 128 folders: a second way through more than that many, in
#   the same order, never finds one there.
#       5.23.0: 547 folders, 1,669 files opened by `import transformers`, 1,680 more by AutoTokenizer
#       4.57.6: 404 folders, 1,416 files opened by `import transformers`, 1,430 more by AutoTokenizer
# Why it matters: every rank of a job opens more than 3,000 files before it reads a weight. On an environment that a
#   network file system holds, a thousand ranks ask its one server for metadata three million times at the same moment.
# Here: gipo_mc/parallel/imports/model_names.py gives the second reading what the first has found;
#   tests/parallel/imports/test_model_names.py counts the files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 5.23.0 4.57.6; do
    "${PYTHON:-python3}" -m venv "env-$version"
    "env-$version/bin/pip" install -q "transformers==$version" || { echo "pip could not install them."; exit 2; }
done
export HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1

cat > count.py <<'PYTHON'
import sys

opened: set[str] = set()
times = 0


def hook(event, arguments):
    global times
    name = arguments[0] if event == "open" else None
    if isinstance(name, str) and "/transformers/models/" in name and name.endswith(".py"):
        opened.add(name)
        times += 1


sys.addaudithook(hook)
import transformers

files, first = len(opened), times
transformers.AutoTokenizer
folders = len({name.rpartition("/")[0] for name in opened})
print(
    f"{transformers.__version__}: {folders} folders, {first:,} files opened by `import transformers`, "
    f"{times - first:,} more by AutoTokenizer"
)
sys.exit(0 if files > 1000 and times - first >= files else 1)
PYTHON

for version in 5.23.0 4.57.6; do
    "env-$version/bin/python" -I count.py || { echo "Version $version does not read them twice: the behaviour changed."; exit 1; }
done
