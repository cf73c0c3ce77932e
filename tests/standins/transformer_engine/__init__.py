"""A stand-in for TransformerEngine 2.9 on a machine without a GPU: its signatures, on torch's operators.

Only for a process that has tests/standins on its path. The two linears, the fused Adam and the three functions of
Megatron's gradient norm compute; every other name is an empty class, so that Megatron's wrappers can be imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

import torch

from . import _optimizers, _pytorch

__version__ = "2.9.0"


class _Module(types.ModuleType):
    """Any submodule: what computes, and an empty class for every other name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for source in (_pytorch, _optimizers):
            if hasattr(source, name.removeprefix("_")):
                return getattr(source, name.removeprefix("_"))
        if name[0].isupper():
            made = type(name, (torch.nn.Module,), {"is_fp8_enabled": staticmethod(lambda: False)})
            setattr(self, name, made)
            return made
        return importlib.import_module(f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.startswith("transformer_engine."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


sys.meta_path.append(_Finder())
pytorch = importlib.import_module("transformer_engine.pytorch")
common = importlib.import_module("transformer_engine.common")
