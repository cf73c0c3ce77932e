"""Functions that libraries hand to torch's compiler as they are imported wait for their first call."""

from __future__ import annotations

import gc
from typing import Any

import torch

from gipo_mc.parallel.imports import compiler


def test_what_is_handed_over_waits_for_its_first_call(monkeypatch: Any) -> None:
    handed: list[tuple[str, dict[str, Any]]] = []

    def compile_(function: Any, **options: Any) -> Any:
        handed.append((function.__name__, options))
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    disable = torch.compiler.disable
    with compiler.left_out():
        assert not gc.isenabled()

        @torch.compile
        def plain(x: int) -> int:
            """Adds."""
            return x + 1

        @torch.compile(dynamic=True)
        def with_options(x: int) -> int:
            return x + 2

    assert torch.compile is compile_ and torch.compiler.disable is disable and gc.isenabled()
    assert handed == [] and (plain.__name__, plain.__doc__) == ("plain", "Adds.")
    assert (plain(1), plain(2), with_options(1)) == (2, 3, 3)
    assert handed == [("plain", {}), ("with_options", {"dynamic": True})]
