"""The names of transformers' models, which it reads from its files: once in a process.

`import transformers` reads the 1,700 files of its models for the names in them. Asked for the first module of a model,
transformers 5 reads all of them again: it keeps what it found in 128 of its 550 folders. On the file system of a
network, and from every rank, that takes long.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import import_utils

#: As transformers writes it, for what it keeps.
_FOLDER = Path(transformers.__file__).parent / "models"


def import_model(name: str) -> Any:
    """The module `transformers.models.<name>`."""
    define = import_utils.define_import_structure

    def read_before(path: Any, prefix: str | None = None) -> Any:
        return names_of_models() if prefix is None and Path(path).parent == _FOLDER else define(path, prefix)

    import_utils.define_import_structure = read_before
    try:
        return importlib.import_module(f"transformers.models.{name}")
    finally:
        import_utils.define_import_structure = define


def names_of_models() -> dict[frozenset[str], dict[str, set[str]]]:
    """What `define_import_structure` finds in `transformers.models`, of what the import of transformers found; that is
    kept, as a whole."""
    found = import_utils.define_import_structure(_FOLDER, prefix="models")
    return {
        needs: {name.removeprefix("models."): of for name, of in names.items() if name.startswith("models.")}
        for needs, names in found.items()
    }
