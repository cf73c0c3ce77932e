"""A function in a process of its own, as a program that imports the library: no ranks, no groups, nothing patched."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def in_a_process(fn: Callable[..., Any], folder: Path, *args: Any) -> Any:
    """Call `fn(*args)` in a fork that works in `folder`; what it returned (picklable). Its error fails the test."""
    answer = folder / "answer.pt"
    process = mp.get_context("fork").Process(target=_work, args=(fn, folder, answer, args))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        raise AssertionError("the process did not end within 120 s")
    assert answer.exists(), f"the process ended with {process.exitcode}"
    result, error = torch.load(answer, weights_only=False)
    assert not error, error
    return result


def _work(fn: Callable[..., Any], folder: Path, answer: Path, args: tuple[Any, ...]) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    gc.freeze()
    try:
        outcome = (fn(*args), "")
    except BaseException:
        outcome = (None, traceback.format_exc())
    torch.save(outcome, answer)
    os._exit(0)
