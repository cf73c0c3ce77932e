"""transformers reads the files of its models once, and what it is given for the second time is what it would find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import transformers
from transformers.utils import import_utils

from gipo_mc.parallel.imports.model_names import names_of_models
from tests.source_rules import ROOT

_COUNT = """
import sys
opened = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and "transformers/models/" in arguments[0]:
        opened.append(arguments[0])
sys.addaudithook(hook)
from gipo_mc.parallel.imports.model_names import import_model
before = len(opened)
assert import_model("auto").AutoTokenizer.__name__ == "AutoTokenizer"
print(before, len(opened))
"""


def test_what_is_known_is_what_would_be_read() -> None:
    models = Path(transformers.__file__).parent / "models" / "__init__.py"
    read = import_utils.define_import_structure.__wrapped__(str(models))
    assert names_of_models() == read and any("llama.modeling_llama" in names for names in read.values())


def test_the_files_are_read_once() -> None:
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, cwd=ROOT, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 1000 and after - before < 100
