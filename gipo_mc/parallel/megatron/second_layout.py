"""Process groups of a second layout on the same ranks, beside those that training uses (parallel.frozen_tensor).

Megatron keeps its groups in the globals of one module, `parallel_state`. Most of its modules would take others as an
argument; the schedules, the exchange between stages and the sharded state of 0.16 look them up, and so does code here.
So the globals are exchanged for as long as a model of the second layout is built or runs: nothing else runs then, and
whatever looks up a group, in any version, finds those of the model's own layout.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core import parallel_state

_Globals = dict[str, Any]


def _taken() -> _Globals:
    """The globals as they are; `_global_process_group_list`, of all groups of the process, is not one of them."""
    return {name: value for name, value in vars(parallel_state).items() if re.fullmatch("_[A-Z][A-Z0-9_]*", name)}


def _put(values: _Globals) -> None:
    vars(parallel_state).update(values)


#: Before any group was made: this module is imported before `runtime` makes the first ones.
_NONE = {name: copy.copy(value) for name, value in _taken().items()}  # a container may be filled where it is


class Groups:
    """Groups of one layout: those that Megatron makes while this is active for the first time."""

    def __init__(self) -> None:
        self._own: _Globals = {name: copy.copy(value) for name, value in _NONE.items()}
        self._active = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Everything that asks Megatron for a group is given one of these. Entered by all ranks together."""
        if self._active:
            yield
            return
        before = _taken()
        _put(self._own)
        self._active = True
        try:
            yield
        finally:
            self._active = False
            self._own = _taken()
            _put(before)
