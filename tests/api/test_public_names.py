"""The public names of the library, their signatures and fields, are those of public_names.txt.

A name or parameter that goes, or that changes its meaning, breaks programs: docs/library.md says what comes first.
To renew the list after a change that is meant: python -m tests.api.test_public_names
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gipo_mc
from tests.source_rules import ROOT

#: What gipo_mc asks for and the ops do without.
NOT_FOR_OPS = [
    *("megatron", "transformers", "tokenizers", "safetensors", "datasets", "blake3", "pydantic", "omegaconf", "rich"),
    *("tensorboard", "matplotlib", "pandas"),
]
LIST = Path(__file__).with_name("public_names.txt")


def public_lines() -> list[str]:
    """A line for each name, and for each public method and field of a class."""
    return [line for name in sorted(gipo_mc.__all__) for line in _lines(name, getattr(gipo_mc, name))]


def _lines(name: str, found: Any) -> Iterator[str]:
    if inspect.ismodule(found):
        yield f"{name}: module"
    elif inspect.isclass(found):
        yield from _class_lines(name, found)
    elif callable(found):
        yield f"{name}{_signature(found)}"
    else:
        yield f"{name}: {type(found).__name__}"


def _class_lines(name: str, found: type) -> Iterator[str]:
    if dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            yield f"{name}.{field.name}: {field.type}{'' if needed else ' = ...'}"
        return
    fields = getattr(found, "_fields", ())
    yield from (f"{name}.{field}" for field in fields)
    members = [key for key in vars(found) if not key.startswith("_") and key not in fields]
    if issubclass(found, Exception):
        yield f"{name}({', '.join(base.__name__ for base in found.__bases__)})"
    for key in sorted(members):
        member = inspect.getattr_static(found, key)
        if isinstance(member, property):
            yield f"{name}.{key}: {inspect.signature(member.fget).return_annotation}"  # type: ignore[arg-type]
        elif callable(member) and not fields:
            yield f"{name}.{key}{_signature(member)}"


def _signature(function: Any) -> str:
    return re.sub(r"(: |-> )(['\"])(.*?)\2(?=[,)]| = |$)", r"\1\3", str(inspect.signature(function)))


def test_public_names_and_signatures_are_the_committed_ones() -> None:
    assert public_lines() == LIST.read_text(encoding="utf-8").splitlines()


def test_the_types_name_the_same() -> None:
    """gipo_mc/__init__.pyi, which type checkers read in place of the late imports."""
    tree = ast.parse((ROOT / "gipo_mc" / "__init__.pyi").read_text(encoding="utf-8"))
    imported = [(node.module, alias) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname == alias.name for _, alias in imported)
    typed = {alias.name: module for module, alias in imported}
    assert typed == gipo_mc._PUBLIC | {"errors": "gipo_mc"}  # type: ignore[attr-defined]  # a part of the module alone


def test_every_public_name_says_what_it_is() -> None:
    for name in gipo_mc.__all__:
        found = getattr(gipo_mc, name)
        members = [m for key, m in vars(found).items() if not key.startswith("_")] if inspect.isclass(found) else []
        for one in (found, *(m for m in members if inspect.isfunction(m))):
            assert name == "__version__" or (one.__doc__ or "").strip(), f"{name}: {one}"


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'load_polic'; it has .*load_policy"):
        _ = gipo_mc.load_polic  # type: ignore[attr-defined]
    assert set(gipo_mc.__all__) <= set(dir(gipo_mc))


def test_the_import_is_cheap_reading_a_run_needs_no_torch_and_the_ops_nothing_else() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); import gipo_mc; took = time.perf_counter() - began\n"
        "gipo_mc.read_run, gipo_mc.Run, gipo_mc.GipoError, gipo_mc.errors\n"
        "assert not {'torch', 'pandas', 'megatron'} & set(sys.modules), 'imported'\n"
        "assert took < 0.2, took\n"
        f"sys.modules.update(dict.fromkeys({NOT_FOR_OPS}))\n"  # as if they were not installed
        "import torch; from gipo_mc import group_objective, group_variance, kl_weights\n"
        "tokens, one, probs = [torch.zeros(1, 2)] * 4, torch.ones(1), torch.ones(1, 2) / 2\n"
        "weight = kl_weights(0.1, probs, 0, 'adaptive')\n"
        "words = {'kl_estimator': 'k2', 'signal_form': 'ratio'}\n"
        "found = group_objective(*tokens, torch.tensor([2]), probs, one, weight, clip=0.2, **words)\n"
        "assert group_variance(found.mass_M, found.weighted_M, 1, weights='size').mean == 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_not_installed_is_named_with_the_remedy() -> None:
    code = (
        "import sys; sys.modules['omegaconf'] = None; import gipo_mc\n"  # as after pip install --no-deps
        "try: gipo_mc.load_policy\n"
        "except ModuleNotFoundError as error: print(error, error.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    needed, remedy = done.stdout.split(". ", 1)
    assert needed == "gipo_mc.load_policy needs omegaconf, which is not installed here"
    assert "`pip install -e .`, without --no-deps" in remedy and remedy.endswith(" omegaconf\n")


if __name__ == "__main__":
    LIST.write_text("\n".join(public_lines()) + "\n", encoding="utf-8")
