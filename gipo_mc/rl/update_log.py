"""What the optimizer steps of an iteration report, gathered into metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from gipo_mc.parallel.step_checks import StepResult, check_step

#: Told (sequences done, sequences in all) after each optimizer step.
Progress = Callable[[int, int], None]


class UpdateLog:
    """Means over the mini-batches of an iteration, under "<prefix>/<name>"."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._values: dict[str, list[float]] = defaultdict(list)
        self._largest: dict[str, float] = {}
        self._lr = 0.0
        self._skipped = 0
        self._padding: list[float] = []

    def add(self, **values: float) -> None:
        """Numbers of one mini-batch, averaged later."""
        for name, value in values.items():
            self._values[name].append(value)

    def largest(self, **values: float) -> None:
        """Numbers of which the largest of the iteration is reported."""
        for name, value in values.items():
            self._largest[name] = max(value, self._largest.get(name, value))

    def padding(self, share: float) -> None:
        """Share of padding among the tokens that a mini-batch runs."""
        self._padding.append(share)

    def step(self, result: StepResult) -> None:
        """One optimizer step. A skipped one counts, and leaves the mean gradient norm finite. Raises NumericsError
        where the step overwrote the model."""
        check_step(result, "policy" if self._prefix == "policy" else "critic")
        self._lr = result.lr
        if result.updated:
            self.add(grad_norm=result.grad_norm)
        else:
            self._skipped += 1

    @property
    def skipped(self) -> int:
        """Optimizer steps whose gradient norm was not finite: nothing was changed."""
        return self._skipped

    def metrics(self) -> dict[str, float]:
        """Everything, with "lr" of the last step, the number of "skipped" steps, and "padding/update_<prefix>"."""
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        values = means | self._largest | {"lr": self._lr, "skipped": float(self._skipped)}
        metrics = {f"{self._prefix}/{name}": value for name, value in values.items()}
        return metrics | {f"padding/update_{self._prefix}": sum(self._padding) / len(self._padding)}
