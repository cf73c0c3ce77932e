"""Megatron-core as this package finds it: the version that is installed, and a machine without CUDA.

Importing it imports Megatron-core, without torch's compiler.
"""

from __future__ import annotations

import importlib

from gipo_mc.parallel.megatron import compiler

with compiler.left_out():
    importlib.import_module("megatron.core")
