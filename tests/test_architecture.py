"""The architecture holds: layers import downwards only, files stay small, commands, configs and the README are real.

Each rule is a function from source text to violations; it is applied to the repository, and to snippets that break it.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from gipo_mc.config import load_config
from tests.source_rules import ROOT, bound_names, dotted, imports, module_name, python_files, within

#: From the bottom up. A file imports from its own layer or from a lower level; layers of one level stand side by side
#: and do not import each other.
LEVELS = (
    ("values",),
    ("config",),
    ("ops",),
    ("algorithms",),
    ("parallel",),
    ("models",),
    ("generation", "data"),
    ("run",),
    ("rl", "supervised"),
    ("evaluation", "report", "tools"),
    ("scripts",),
)
LEVEL_OF = {layer: level for level, layers in enumerate(LEVELS) for layer in layers}
VALUES = ("gipo_mc", "gipo_mc.errors", "gipo_mc.presets", "gipo_mc.types")
#: What a layer may not use, although the order of layers would allow it.
FORBIDDEN = {
    "values": ("torch.distributed", "megatron"),
    "config": ("torch", "megatron"),
    "ops": ("megatron", "gipo_mc.config", "torch.distributed.new_group", "torch.distributed.init_process_group"),
    "algorithms": ("torch.distributed", "megatron", "open", "print", "os", "io", "pathlib", "json", "gipo_mc.config"),
    "parallel": ("gipo_mc.algorithms",),  # Megatron's runtime and the models do not know RLHF
    "models": ("gipo_mc.algorithms",),
    "generation": ("gipo_mc.algorithms",),
    "data": ("gipo_mc.models", "gipo_mc.algorithms", "megatron"),
}
SOURCES = ("gipo_mc", "scripts", "csrc")
#: Reports what the native module was built with; everyone else goes through ops.
DOCTOR = "gipo_mc.tools.doctor"
FILE_LIMIT = 500
LOOP_LIMIT = {"gipo_mc/rl/gi_ppo.py": 150}
CPP = {".h", ".hpp", ".cpp", ".cc", ".cu", ".cuh"}
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.y*ml"))


def layer_of(module: str) -> str | None:
    """Layer of a module of the project; None for everything else, `gipo_mc.__version__` and the native module too."""
    parts = module.split(".")
    if parts[0] == "scripts":
        return "scripts"
    if parts[0] != "gipo_mc":
        return None
    if len(parts) > 1 and parts[1] in LEVEL_OF:
        return parts[1]
    return "values" if within(module, VALUES[1:]) or module == "gipo_mc" else None


def layer_violations(module: str, source: str, *, package: bool = False) -> list[str]:
    """Imports that go upwards, and uses that the layer forbids."""
    tree = ast.parse(source)
    here = layer_of(module)
    if here is None:
        return [f"{module} belongs to no layer: put it into one of {', '.join(LEVEL_OF)}"]
    found = []
    forbidden = FORBIDDEN.get(here, ())
    for line, name in imports(tree, module, package=package):
        there = layer_of(name)
        if there and there != here and LEVEL_OF[there] >= LEVEL_OF[here]:
            found.append(f"{module}:{line} ({here}) imports {name} ({there})")
        if within(name, ("gipo_mc._C",)) and here != "ops" and module != DOCTOR:
            found.append(f"{module}:{line} ({here}) imports the native module, which only ops may")
        if within(name, forbidden):
            found.append(f"{module}:{line} ({here}) imports {name}")
    names = bound_names(tree)
    for node in ast.walk(tree):
        used = dotted(node, names) if isinstance(node, ast.Name | ast.Attribute) else None
        if used and within(used, forbidden):
            found.append(f"{module}:{node.lineno} ({here}) uses {used}")
    return sorted(set(found))


def patching_violations(module: str, source: str) -> list[str]:
    """Assignments to attributes of imported modules: only parallel/ adapts Megatron and torch."""
    tree = ast.parse(source)
    names = bound_names(tree)
    found = []
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            name = dotted(target, names) if isinstance(target, ast.Attribute) else None
            if name and within(name, ("torch", "megatron")) and not within(name, ("torch.backends",)):
                found.append(f"{module}:{node.lineno} replaces {name}; Megatron is adapted in parallel/ only")
        if isinstance(node, ast.Call) and dotted(node.func, names) == "setattr" and node.args:
            name = dotted(node.args[0], names)
            if name and within(name, ("torch", "megatron")):
                found.append(f"{module}:{node.lineno} sets an attribute of {name}; adapt it in parallel/ only")
    return found


def size_violations(name: str, source: str) -> list[str]:
    lines = len(source.splitlines())
    limit = LOOP_LIMIT.get(name, FILE_LIMIT)
    return [f"{name} has {lines} lines, more than {limit}: give one of its jobs a file of its own"] * (lines > limit)


def native_violations(name: str, source: str) -> list[str]:
    """csrc/ builds without torch."""
    found = re.findall(r"^\s*#\s*include\s*[<\"]((?:torch|ATen|c10|caffe2)/[^>\"]*)", source, flags=re.MULTILINE)
    return [f"{name} includes {header}: csrc/ knows nothing of torch" for header in found]


def command_violations(name: str, source: str) -> list[str]:
    """A command has a docstring, and the guard without which spawned processes would start it again."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [f"{name} does not begin with what it is for"]
    guards = [n for n in tree.body if isinstance(n, ast.If) and "__name__" in ast.unparse(n.test)]
    if not guards:
        found.append(f'{name} has no `if __name__ == "__main__"`')
    return found


def readme_commands(text: str) -> list[list[str]]:
    """Shell commands of the fenced blocks marked sh, bash, shell or console, as words; comments and output left out."""
    commands = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if language not in {"sh", "bash", "shell", "console"}:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip()
            if language == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
            if words := shlex.split(line, comments=True):
                commands.append(words)
    return commands


def readme_violations(text: str, root: Path = ROOT) -> list[str]:
    """Paths, make targets and configuration keys that the README names and the repository does not have."""
    folders = r"(?:gipo_mc|scripts|configs|tests|docs|benchmarks|csrc|examples)"
    found = []
    commands = readme_commands(text)
    quoted = [word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()]
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    for word in [*(w for c in commands for w in c), *quoted, *links]:
        path = word.strip("'\",;").rstrip(".").split("::")[0]
        is_path = re.fullmatch(rf"(?:\./)?{folders}/[\w./*-]*", path) or path in links
        if is_path and not any(root.glob(path.removeprefix("./").rstrip("/"))):
            found.append(f"the README names {word}, which is not there")
    makefile = root / "Makefile"
    targets = set(re.findall(r"^([a-z]+):", makefile.read_text(), flags=re.MULTILINE)) if makefile.exists() else set()
    for words in commands:
        if words[0] == "make":
            named = [w for w in words[1:] if re.fullmatch(r"[a-z]+", w)]
            found += [f"the README says make {t}, and there is no such target" for t in named if t not in targets]
        train = next((i for i, w in enumerate(words) if re.search(r"scripts/train_\w+\.py$", w)), None)
        if train is not None:
            found += _train_command_violations(words[train + 1 :], root)
    return found


def _train_command_violations(words: list[str], root: Path) -> list[str]:
    config = words[words.index("--config") + 1] if "--config" in words else None
    overrides = [w for w in words if re.match(r"[a-z_]+(\.[a-z_]+)*=", w)]
    try:
        load_config(str(root / config) if config else None, overrides)
    except Exception as error:
        return [f"the README's command `{' '.join(words)}` is refused: {error}"]
    return []


@pytest.mark.parametrize("path", python_files("gipo_mc", "scripts"), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path: Path):
    source, module = path.read_text(encoding="utf-8"), module_name(path)
    violations = layer_violations(module, source, package=path.name == "__init__.py")
    if layer_of(module) != "parallel":
        violations += patching_violations(module, source)
    assert not violations, "\n".join(violations)


def test_sizes():
    files = [p for folder in SOURCES for p in (ROOT / folder).rglob("*") if p.suffix in {".py", *CPP}]
    assert files
    violations = [v for p in files for v in size_violations(p.relative_to(ROOT).as_posix(), p.read_text("utf-8"))]
    assert not violations, "\n".join(violations)
    for loop in LOOP_LIMIT:
        assert (ROOT / loop).is_file(), f"{loop} is where the reader looks for the loop"


def test_native_sources_know_no_torch():
    files = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in CPP]
    assert files
    violations = [v for p in files for v in native_violations(p.name, p.read_text("utf-8"))]
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_commands(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    violations = command_violations(path.name, path.read_text(encoding="utf-8"))
    assert not violations, "\n".join(violations)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code in (0, None)
    assert "usage" in capsys.readouterr().out.lower()


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_configs_load_and_say_what_they_are_for(path: Path):
    load_config(str(path), [])
    assert path.read_text(encoding="utf-8").startswith("#"), f"{path.name} does not begin with a comment"


def test_readme():
    readme = ROOT / "README.md"
    assert readme.is_file(), "there is no README.md"
    text = readme.read_text(encoding="utf-8")
    assert readme_commands(text), "the README shows no command"
    violations = readme_violations(text)
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gipo_mc.config.load", "import torch.distributed"),
        ("gipo_mc.presets", "from gipo_mc.config import Config"),
        ("gipo_mc.types", "from torch import distributed"),
        ("gipo_mc.types", "import torch\ntorch.distributed.get_rank()"),
        ("gipo_mc.ops.gae", "from gipo_mc.config import Config"),
        ("gipo_mc.ops.gae", "import torch.distributed as dist\ndist.new_group([0])"),
        ("gipo_mc.ops.gae", "from ..algorithms import kl"),
        ("gipo_mc.algorithms.kl", "from megatron.core import parallel_state"),
        ("gipo_mc.algorithms.kl", "def f():\n    import torch.distributed"),
        ("gipo_mc.algorithms.kl", "print('loss')"),
        ("gipo_mc.algorithms.kl", "open('x')"),
        ("gipo_mc.algorithms.kl", "from gipo_mc import parallel"),
        ("gipo_mc.parallel.engine", "import gipo_mc.models.stage"),
        ("gipo_mc.models.stage", "from gipo_mc.run import session"),
        ("gipo_mc.models.stage", "from gipo_mc.algorithms.kl import kl"),
        ("gipo_mc.data.rows", "from gipo_mc.models import stage"),
        ("gipo_mc.data.rows", "from gipo_mc.generation.megatron import generate"),
        ("gipo_mc.generation.megatron", "from gipo_mc.data.rows import rows"),
        ("gipo_mc.rl.gi_ppo", "from gipo_mc.report.report import write"),
        ("gipo_mc.rl.gi_ppo", "from gipo_mc.supervised.loop import train"),
        ("gipo_mc.supervised.sft", "def f():\n    from gipo_mc.rl import rewards"),
        ("gipo_mc.rl.gi_ppo", "from gipo_mc._C import gae"),
        ("gipo_mc.report.report", "from gipo_mc.tools import doctor"),
        ("gipo_mc.report.report", "import scripts.train_sft"),
        ("gipo_mc.helpers", "import math"),
    ],
)
def test_layer_rule_finds(module: str, source: str):
    assert layer_violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gipo_mc.ops.gae", "import torch.distributed as dist\nfrom gipo_mc import _C\ndist.all_gather"),
        ("gipo_mc.algorithms.kl", "import torch\nfrom gipo_mc.types import Rollout\nfrom gipo_mc.ops import gae"),
        ("gipo_mc.data.rows", "from gipo_mc.parallel.streams import permutation"),
        ("gipo_mc.report.report", "from gipo_mc.run import metrics"),
        ("gipo_mc.tools.builtin", "from gipo_mc.rl import gi_ppo\nfrom gipo_mc.supervised import sft"),
        ("scripts.report", "from gipo_mc.report.report import write"),
    ],
)
def test_layer_rule_allows(module: str, source: str):
    assert not layer_violations(module, source)


def test_the_other_rules_find():
    assert patching_violations("m", "import torch\ntorch.cuda.current_device = lambda: 0")
    assert patching_violations("m", "from megatron.core import parallel_state as p\nsetattr(p, 'x', 1)")
    assert not patching_violations("m", "import torch\ntorch.backends.cuda.matmul.allow_tf32 = True\nself.torch = 1")
    assert size_violations("gipo_mc/x.py", "x = 1\n" * (FILE_LIMIT + 1))
    assert size_violations("gipo_mc/rl/gi_ppo.py", "x = 1\n" * 151)
    assert not size_violations("gipo_mc/x.py", "x = 1\n" * FILE_LIMIT)
    assert native_violations("a.cpp", '#include <vector>\n# include "ATen/ATen.h"\n')
    assert len(command_violations("x.py", "print('hello')")) == 2


@pytest.mark.parametrize(
    "text",
    [
        "```bash\npython scripts/no_such_command.py\n```",
        "```sh\nmake no_target notarget\n```",
        "```console\n$ torchrun scripts/train_sft.py --config configs/missing.yaml\n```",
        "```bash\ntorchrun scripts/train_gi_ppo.py \\\n  parallel.tensors=2\n```",
        "see `gipo_mc/no_such_file.py`",
        "see [the design](docs/no_such_page.md#part)",
    ],
)
def test_readme_rule_finds(text: str):
    assert readme_violations(text)


def test_readme_rule_allows():
    text = "```bash\nmake test  # all of it\n```\n`gipo_mc/types.py` `scripts/*` [x](LICENSE) [y](https://a.org/b)"
    text += "\n```console\n$ torchrun --nproc-per-node 2 gipo_mc/types.py\nscripts/this_is_output.py\n```"
    assert readme_violations(text) == []
