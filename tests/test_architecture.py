"""The architecture holds: layers import downwards only, in no circle; files, folders and functions stay small.

Each rule is a function from source text to violations; it is applied to the repository, and to snippets that break it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

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
    ("evaluation", "plan"),
    ("report",),
    ("monitor",),
    ("tools",),
    ("api",),
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
#: Reports what the native module was built with; everyone else goes through ops.
DOCTOR = "gipo_mc.tools.doctor"
#: Only `parallel` assigns to their attributes.
ADAPTED = ("torch", "megatron", "transformers")
CPP = {".h", ".hpp", ".cpp", ".cc", ".cu", ".cuh"}
SOURCES = [
    path
    for folder in ("gipo_mc", "scripts", "benchmarks", "examples", "csrc", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".sh", *CPP}
]
#: Lines of a file.
FILE_LIMIT = 350
FILE_LIMITS = {"gipo_mc/rl/gi_ppo.py": 150}
#: Python files of a folder.
FOLDER_LIMIT = 16
#: Lines of a function, its docstring counted.
FUNCTION_LIMIT = 60
#: Functions that are longer, each with the reason.
LONG_FUNCTIONS = {
    "gipo_mc/ops/token_objective.py:token_objective": "a kernel: its arguments take half of it",
    "gipo_mc/ops/token_statistics.py:token_statistics": "a kernel: its arguments take half of it",
}


def layer_of(module: str) -> str | None:
    """Layer of a module of the project; None for everything else, `gipo_mc.__version__` and the native module too."""
    parts = module.split(".")
    if parts[0] == "scripts" or module == "gipo_mc.__main__":
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
    """Assignments to attributes of imported modules: only parallel/ adapts Megatron, torch and transformers."""
    tree = ast.parse(source)
    names = bound_names(tree)
    found = []
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            name = dotted(target, names) if isinstance(target, ast.Attribute) else None
            if name and within(name, ADAPTED) and not within(name, ("torch.backends",)):
                found.append(f"{module}:{node.lineno} replaces {name}; libraries are adapted in parallel/ only")
        if isinstance(node, ast.Call) and dotted(node.func, names) == "setattr" and node.args:
            name = dotted(node.args[0], names)
            if name and within(name, ADAPTED):
                found.append(f"{module}:{node.lineno} sets an attribute of {name}; adapt it in parallel/ only")
    return found


def size_violations(name: str, source: str) -> list[str]:
    """A file that is too long to have one job."""
    lines = len(source.splitlines())
    limit = FILE_LIMITS.get(name, FILE_LIMIT)
    return [f"{name} has {lines} lines, more than {limit}: give one of its jobs a file of its own"] * (lines > limit)


def folder_violations(names: list[str]) -> list[str]:
    """Folders with too many Python files, of the files' paths."""
    folders = [Path(name).parent.as_posix() for name in names if name.endswith(".py")]
    return [
        f"{folder}/ has {folders.count(folder)} Python files, more than {FOLDER_LIMIT}: group some in a folder"
        for folder in sorted(set(folders))
        if folders.count(folder) > FOLDER_LIMIT
    ]


def function_violations(name: str, source: str) -> list[str]:
    """Functions that do not fit a screen, and exceptions that are not needed any more."""
    found, seen = [], set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert node.end_lineno is not None
        lines, label = node.end_lineno - node.lineno + 1, f"{name}:{node.name}"
        if lines >= FUNCTION_LIMIT:
            seen.add(label)
            if label not in LONG_FUNCTIONS:
                found.append(f"{label} has {lines} lines: keep functions under {FUNCTION_LIMIT}")
    spare = [label for label in LONG_FUNCTIONS if label.startswith(f"{name}:") and label not in seen]
    return found + [f"{label} is short: take it out of LONG_FUNCTIONS" for label in spare]


def circles(sources: Mapping[str, tuple[str, bool]]) -> list[set[str]]:
    """Sets of modules that import each other, directly or through others, in functions and under TYPE_CHECKING too.

    sources: module -> (source text, is it a package). Importing `a.b.c` counts for `a.b.c` alone: that Python runs the
    packages above it first is no use of them.
    """
    uses = {
        module: set(_used_modules(ast.parse(text), module, package, sources)) - {module}
        for module, (text, package) in sources.items()
    }
    reached = {module: _reachable(module, uses) for module in uses}
    found: list[set[str]] = []
    for module in uses:
        circle = {other for other in reached[module] if module in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def _used_modules(tree: ast.AST, module: str, package: bool, known: Mapping[str, object]) -> Iterator[str]:
    names = {name for _, name in imports(tree, module, package=package)}
    for name in names:
        # `from a import b` names a and a.b; where every such b is a module, nothing of a itself is used.
        inner = {other for other in names if other.rpartition(".")[0] == name}
        if name in known and not (inner and inner <= known.keys()):
            yield name


def _reachable(module: str, uses: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    new = set(uses[module])
    while new:
        reached |= new
        new = {further for name in new for further in uses.get(name, ())} - reached
    return reached


def native_violations(name: str, source: str) -> list[str]:
    """csrc/ builds without torch."""
    found = re.findall(r"^\s*#\s*include\s*[<\"]((?:torch|ATen|c10|caffe2)/[^>\"]*)", source, flags=re.MULTILINE)
    return [f"{name} includes {header}: csrc/ knows nothing of torch" for header in found]


@pytest.mark.parametrize("path", python_files("gipo_mc", "scripts"), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path: Path):
    source, module = path.read_text(encoding="utf-8"), module_name(path)
    violations = layer_violations(module, source, package=path.name == "__init__.py")
    if layer_of(module) != "parallel":
        violations += patching_violations(module, source)
    assert not violations, "\n".join(violations)


def test_sizes_of_files():
    assert SOURCES
    violations = [v for p in SOURCES for v in size_violations(p.relative_to(ROOT).as_posix(), p.read_text("utf-8"))]
    assert not violations, "\n".join(violations)
    for name in FILE_LIMITS:
        assert (ROOT / name).is_file(), f"{name} has a limit of its own, and is not there"


def test_sizes_of_folders():
    violations = folder_violations([p.relative_to(ROOT).as_posix() for p in SOURCES])
    assert not violations, "\n".join(violations)


def test_sizes_of_functions():
    files = python_files("gipo_mc", "scripts", "benchmarks", "examples", "tests")
    violations = [v for p in files for v in function_violations(p.relative_to(ROOT).as_posix(), p.read_text("utf-8"))]
    assert not violations, "\n".join(violations)
    for label in LONG_FUNCTIONS:
        assert (ROOT / label.split(":")[0]).is_file(), f"{label} is not there: take it out of LONG_FUNCTIONS"


def test_no_modules_import_each_other():
    sources = {module_name(p): (p.read_text("utf-8"), p.name == "__init__.py") for p in python_files("gipo_mc")}
    found = circles(sources)
    assert not found, "\n".join(f"import each other: {', '.join(sorted(circle))}" for circle in found)


def test_native_sources_know_no_torch():
    files = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in CPP]
    assert files
    violations = [v for p in files for v in native_violations(p.name, p.read_text("utf-8"))]
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
    assert native_violations("a.cpp", '#include <vector>\n# include "ATen/ATen.h"\n')


def test_the_size_rules_find():
    assert size_violations("gipo_mc/x.py", "x = 1\n" * 351) and not size_violations("gipo_mc/x.py", "x = 1\n" * 350)
    assert size_violations("csrc/x.cu", "\n" * 351) and size_violations("benchmarks/kernels/x.py", "\n" * 351)
    assert size_violations("gipo_mc/rl/gi_ppo.py", "x = 1\n" * 151)
    assert size_violations("tests/test_x.py", "\n" * 351) and not size_violations("tests/test_x.py", "\n" * 350)
    many = [f"gipo_mc/rl/{number}.py" for number in range(17)]
    assert folder_violations(many) and not folder_violations([*many[1:], "gipo_mc/rl/x.cu", "gipo_mc/run/x.py"])
    long, short = ("def f():\n    pass\n" + "    pass\n" * lines for lines in (58, 57))
    assert function_violations("x.py", long) and not function_violations("x.py", f"{short}\n{short}")
    assert function_violations("x.py", "class A:\n    async " + long.replace("\n", "\n    "))


def test_the_circle_rule_finds():
    def found(**texts: str) -> list[set[str]]:
        return circles({name.replace("_", "."): (text, name == "p") for name, text in texts.items()})

    assert found(p_a="from p.b import x", p_b="from p import a") == [{"p.a", "p.b"}]
    assert found(p_a="import p.b", p_b="def f():\n    import p.c", p_c="from . import a") == [{"p.a", "p.b", "p.c"}]
    assert found(p_a="if TYPE_CHECKING:\n    from p.b import B", p_b="import p.a") == [{"p.a", "p.b"}]
    assert found(p="from p.a import f", p_a="from p import g") == [{"p", "p.a"}]
    assert not found(p="from p.a import f", p_a="from p import b", p_b="import math")
