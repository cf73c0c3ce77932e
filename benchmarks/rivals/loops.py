"""The turns of a side that generates: the same course for every engine, so that none is measured in another way."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from benchmarks.rivals.protocol import Turns, forget_peak, resident_bytes
from benchmarks.rivals.units import GENERATION, Unit

#: f(unit, step) -> its figures, "tokens" and "responses".
Generate = Callable[[Unit, int], dict[str, Any]]


def take_generation_turns(turns: Turns, generate: Generate, about: Mapping[str, Any]) -> NoReturn:
    """Try every unit once, then do one in each turn. about: what the side says of itself."""
    for unit in GENERATION.values():
        generate(unit, 0)
    done, step = dict(about), 0
    while True:
        unit = GENERATION[turns.wait(**done)]
        step += 1
        done = generate(unit, step)


def take_memory_turns(turns: Turns, make: Callable[[], Generate], about: Mapping[str, Any]) -> NoReturn:
    """Highest resident set of a generation beyond the idle process, "extra_bytes". `make` loads the model, anew in each
    turn, as the first time leaves code and tables in memory that stay."""
    make()(GENERATION["sampled"], 0)
    done = dict(about)
    while True:
        turns.wait(**done)
        forget_peak()
        idle = resident_bytes()
        generate = make()
        forget_peak()
        done = generate(GENERATION["sampled"], 1) | {"extra_bytes": resident_bytes("VmHWM") - idle}
        del generate
        gc.collect()
