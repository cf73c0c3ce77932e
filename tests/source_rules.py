"""What a source file imports and calls, by its syntax tree: shared by the architecture and the security test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def python_files(*folders: str) -> list[Path]:
    """Python files below the folders of the repository, in order."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """`gipo_mc.ops.gae` for gipo_mc/ops/gae.py; a package has its own name."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, *, package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of everything imported, inside functions and under TYPE_CHECKING too.

    `from a.b import c` names both a.b and a.b.c, because c may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".") if package else module.split(".")[:-1]
                above = above[: len(above) - (node.level - 1)]
                base = ".".join([*above, *([base] if base else [])])
            yield node.lineno, base
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def bound_names(tree: ast.AST) -> dict[str, str]:
    """Local name -> what an import bound it to: `dist` -> torch.distributed."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """`torch.distributed.all_reduce` for `dist.all_reduce`; None where the root is not a plain name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


def within(name: str, prefixes: tuple[str, ...]) -> str | None:
    """The prefix that `name` is, or is inside of."""
    return next((p for p in prefixes if name == p or name.startswith(p + ".")), None)
