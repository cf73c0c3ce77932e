"""The reader of source files itself: what it misses, the rules built on it would miss."""

import ast

from tests.source_rules import bound_names, dotted, imports


def _names(source: str, module: str = "gipo_mc.ops.x", package: bool = False) -> set[str]:
    return {name for _, name in imports(ast.parse(source), module, package=package)}


def test_imports_are_resolved_to_absolute_names():
    assert _names("import torch.distributed as dist") == {"torch.distributed"}
    assert _names("from torch import distributed") == {"torch", "torch.distributed"}
    assert _names("from . import gae") == {"gipo_mc.ops", "gipo_mc.ops.gae"}
    assert _names("from ..config import Config") == {"gipo_mc.config", "gipo_mc.config.Config"}
    assert _names("from .gae import f", "gipo_mc.ops", package=True) == {"gipo_mc.ops.gae", "gipo_mc.ops.gae.f"}


def test_imports_inside_functions_are_seen():
    assert "megatron" in _names("def f():\n    import megatron")


def test_dotted_names_follow_aliases():
    tree = ast.parse("import torch.distributed as d\nimport torch\nfrom os import system as s")
    names = bound_names(tree)
    assert dotted(ast.parse("d.all_reduce", mode="eval").body, names) == "torch.distributed.all_reduce"
    assert dotted(ast.parse("torch.load", mode="eval").body, names) == "torch.load"
    assert dotted(ast.parse("s", mode="eval").body, names) == "os.system"
    assert dotted(ast.parse("f().load", mode="eval").body, names) is None
