"""The package runs no foreign code: no pickle, eval, exec, unsafe YAML, shell, trust_remote_code (by syntax tree)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.source_rules import ROOT, bound_names, dotted, imports, python_files, within

MODULES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "pty", "telnetlib")
CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "runs text as code",
    "__import__": "imports what a text names",
    "os.system": "goes through a shell",
    "os.popen": "goes through a shell",
    "subprocess.getoutput": "goes through a shell",
    "subprocess.getstatusoutput": "goes through a shell",
    "yaml.load": "may build any object: yaml.safe_load",
    "yaml.load_all": "may build any object: yaml.safe_load_all",
    "yaml.unsafe_load": "may build any object: yaml.safe_load",
    "yaml.full_load": "may build more than values: yaml.safe_load",
    "pandas.read_pickle": "unpickles a file",
    "torch.hub.load": "runs downloaded code",
    "tempfile.mktemp": "names a file that another process may take first",
}
#: The one reader of a pickle, whose names are records that do nothing: of `pickle` it may use only this, and write one.
READERS = {"gipo_mc/parallel/shard_index.py": ("pickle.Unpickler", "pickle.dumps")}
#: What reads a pickle without saying so: torch's and Megatron's readers of sharded checkpoints.
READS_PICKLES = {
    "megatron.core.dist_checkpointing.load": "unpickles the index: gipo_mc.parallel.sharded_files.read",
    "megatron.core.dist_checkpointing.load_plain_tensors": "unpickles the index: sharded_files.read",
    "megatron.core.dist_checkpointing.load_tensors_metadata": "unpickles the index: sharded_files.dtypes",
    "megatron.core.dist_checkpointing.load_sharded_metadata": "unpickles the index: sharded_files.dtypes",
    "megatron.core.dist_checkpointing.load_common_state_dict": "unpickles a file: sharded_files.read",
    "torch.distributed.checkpoint.FileSystemReader": "unpickles the index: sharded_files.read",
    "torch.distributed.checkpoint.load": "unpickles the index: sharded_files.read",
    "torch.distributed.checkpoint.load_state_dict": "unpickles the index: sharded_files.read",
}
#: The adapter itself, which gives these its own readers.
ADAPTER = "gipo_mc/parallel/sharded_files.py"
#: Keyword arguments that may not be given with anything but this constant.
KEYWORDS = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True, "verify": True}
FILES = [*python_files("gipo_mc", "scripts", "benchmarks", "examples"), *ROOT.glob("setup.py")]


def violations(name: str, source: str) -> list[str]:
    """What in this source could run foreign code, each with its line."""
    tree = ast.parse(source)
    names = bound_names(tree)
    found = [
        f"{name}:{line} imports {what}"
        for line, what in imports(tree, name)
        if within(what, MODULES) and not (name in READERS and what == "pickle")
    ]
    for node in ast.walk(tree):
        used = dotted(node, names) if isinstance(node, ast.Attribute) else None
        if used and used.startswith("pickle.") and not within(used, READERS.get(name, ())):
            found.append(f"{name}:{node.lineno} uses {used}")
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func, names)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if called in READS_PICKLES and name != ADAPTER:
            found.append(f"{name}:{node.lineno} {called} {READS_PICKLES[called]}")
        if called in CALLS:
            found.append(f"{name}:{node.lineno} {called} {CALLS[called]}")
        if called == "torch.load" and "weights_only" not in given:
            found.append(f"{name}:{node.lineno} torch.load without weights_only=True unpickles whatever it is given")
        for keyword, safe in KEYWORDS.items():
            value = given.get(keyword)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is safe):
                found.append(f"{name}:{node.lineno} {keyword}={ast.unparse(value)}; only {safe} is allowed")
        for value in (v for k, v in given.items() if k is None and isinstance(v, ast.Dict)):
            keys = {key.value for key in value.keys if isinstance(key, ast.Constant)}
            found += [f"{name}:{node.lineno} hides {k} in a dictionary" for k in sorted(keys & KEYWORDS.keys())]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_foreign_code(path: Path):
    found = violations(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "def f():\n    import marshal",
        "eval('1')",
        "exec(text)",
        "from os import system as s\ns('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.run('ls', shell=flag)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml as y\ny.unsafe_load(text)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=config.trust)",
        "AutoModel.from_pretrained(x, **{'trust_remote_code': True})",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "from torch import load\nload(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "from megatron.core import dist_checkpointing\ndist_checkpointing.load(state, path)",
        "from megatron.core import dist_checkpointing as dc\ndc.load_tensors_metadata(path)",
        "from torch.distributed import checkpoint\ncheckpoint.FileSystemReader(path).read_metadata()",
    ],
)
def test_the_rule_finds(source: str):
    assert violations("snippet.py", source)


def test_the_reader_of_an_index_may_use_nothing_else_of_pickle():
    (name,) = READERS
    allowed = (
        "import pickle\nclass Reader(pickle.Unpickler):\n    def find_class(self, module, name):\n        return Record"
    )
    assert not violations(name, allowed) and violations("gipo_mc/parallel/other.py", allowed)
    assert violations(name, "import pickle\npickle.load(file)") and violations(name, "from pickle import load")
    assert "def find_class" in (ROOT / name).read_text(), "it resolves names by itself"


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import re, torch\nre.compile('x')\ntorch.compile(f)",
        "import yaml\nyaml.safe_load(text)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import subprocess\nsubprocess.run(['ls'], check=True, shell=False)",
        "import json\njson.load(file)",
    ],
)
def test_the_rule_allows(source: str):
    assert not violations("snippet.py", source)
