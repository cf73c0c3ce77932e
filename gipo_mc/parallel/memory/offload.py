"""Models and optimizer states that are on the device only while they are at work (memory.offload).

Three kinds may leave: `frozen`, the weights of models that only score; `idle`, the weights of trained models between
their turns, and gradient buffers between updates; `optimizer`, moments and float32 masters between updates. What leaves
and comes is storages, whole: parameters, their views in Megatron's buffers and tied weights stay the tensors they are.

An engine says what it is about to do, and the offloader makes room: everything that may leave and is not needed goes,
what is needed comes. While a model scores, the weights of the next one come beside it; while it computes the first
gradients of an update, its optimizer state comes. So at most two models that score, or one that trains, lie on the
device. Contents are the same bits afterwards, so no result depends on any of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, UntypedStorage

from gipo_mc.parallel.memory.movers import Copy, Move, Mover, release, restore

#: Values of memory.offload.
Kind = Literal["frozen", "optimizer", "idle"]
#: Tensors as they are when it is called.
Tensors = Callable[[], Iterable[Tensor]]


class Part:
    """Storages of a model that leave and come together.

    find: the storages as they are now; loading a checkpoint gives an optimizer new ones.
    kept: does their content matter? That of gradients does not, once a step is taken.
    """

    def __init__(self, name: str, find: Callable[[], list[UntypedStorage]], mover: Mover, *, kept: bool = True) -> None:
        self._name, self._find, self._mover, self.kept = name, find, mover, kept
        self._storages = find()
        self._sizes = [storage.nbytes() for storage in self._storages]
        self._copy: Copy | None = None
        self._move: Move | None = None
        self._here, self._saved = True, False

    @property
    def here(self) -> bool:
        """On the device, or on the way to it?"""
        return self._here

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self._sizes)

    def fetch(self) -> None:
        """Begin to bring it in."""
        if self._here:
            return
        self.settle()
        self._here = True
        if self.kept:
            assert self._copy is not None, "what is not here was saved"
            self._move = self._copy.load()
        else:
            restore(self._storages, self._sizes)

    def changes(self) -> None:
        """Its content is about to change: what the host has is out of date."""
        self._saved = False

    def leave(self) -> None:
        """Begin to send it out."""
        if not self._here:
            return
        self.settle()
        self._here = False
        if self.kept and not self._saved:
            self._move, self._saved = self._room().save(), True
        else:
            release(self._storages)

    def settle(self) -> None:
        """Wait until it is where it was sent."""
        if self._move is not None:
            move, self._move = self._move, None
            move.wait()

    def _room(self) -> Copy:
        found = self._find()
        same = [one._cdata for one in found] == [one._cdata for one in self._storages]
        if self._copy is None or not same:
            if self._copy is not None:
                self._copy.close()
            self._storages, self._sizes = found, [storage.nbytes() for storage in found]
            self._copy = self._mover.room(self._name, found)
        return self._copy


@dataclass(frozen=True, eq=False)
class Resident:
    """What one model has on the device. None: it stays there always."""

    offloader: Offloader
    weights: Part | None = None
    gradients: Part | None = None
    optimizer: Part | None = None

    @property
    def parts(self) -> list[Part]:
        """All that may leave."""
        return [part for part in (self.weights, self.gradients, self.optimizer) if part is not None]

    def score(self) -> None:
        """The weights are here when this returns; those of the next model may be on their way."""
        self.offloader.use(self, ahead=True)

    def generate(self) -> None:
        """The weights are here when this returns, and nothing else that may leave: the KV cache wants the room."""
        self.offloader.rest(but=self.weights)
        self.offloader.use(self)

    def train(self) -> None:
        """Weights and gradient buffers are here when this returns, and the optimizer's state is on its way."""
        self.offloader.use(self, gradients=True)

    def step(self) -> None:
        """Everything is here when this returns, and about to change."""
        self.offloader.use(self, gradients=True, optimizer=True)
        for part in self.parts:
            part.changes()

    @contextmanager
    def whole(self, *, changes: bool = False) -> Iterator[None]:
        """Weights and optimizer state are here, for a checkpoint; afterwards everything rests. changes: are they
        written?"""
        self.offloader.use(self, optimizer=True)
        if changes:
            for part in self.parts:
                part.changes()
        yield
        self.offloader.rest()


class Offloader:
    """Knows all models of a run and moves them.

    kinds: what may leave; without any, models are left alone. mover: of the device.
    seconds: how long the run has waited for moves so far.
    """

    def __init__(self, kinds: Iterable[Kind] = (), mover: Mover | None = None) -> None:
        self._kinds, self._mover = frozenset(kinds), mover
        self._residents: list[Resident] = []
        self._order: list[Resident] = []
        self._place = 0
        self._now: Resident | None = None
        self._training = False
        self.seconds = 0.0

    def take(self, name: str, weights: Tensors, gradients: Tensors, optimizer: Tensors) -> Resident | None:
        """A model by its tensors, whose parts leave at once; None where nothing leaves. One without gradient buffers is
        frozen. name: in messages."""
        mover = self._mover
        if mover is None:
            return None

        def part(kind: Kind, what: str, find: Callable[[], list[UntypedStorage]], *, kept: bool = True) -> Part | None:
            if kind not in self._kinds or not find():
                return None
            return Part(f"the {what} of {name}", find, mover, kept=kept)

        def state() -> list[UntypedStorage]:
            """Without the model's own weights, which the optimizer has as its own in float32."""
            model = {storage._cdata for storage in _storages(weights())}
            return [storage for storage in _storages(optimizer()) if storage._cdata not in model]

        trained = bool(_storages(gradients()))
        resident = Resident(
            self,
            part("idle" if trained else "frozen", "weights", lambda: _storages(weights())),
            part("idle", "gradients", lambda: _storages(gradients()), kept=False),
            part("optimizer", "optimizer state", state),
        )
        self._residents.append(resident)
        self.rest()
        return resident

    def in_turn(self, order: Iterable[Resident | None]) -> None:
        """Models in the order in which an iteration uses their weights, so that the next one can come ahead. One that
        comes out of order is only not expected."""
        self._order, self._place = [resident for resident in order if resident is not None], 0

    def use(self, resident: Resident, *, gradients: bool = False, optimizer: bool = False, ahead: bool = False) -> None:
        """Make room, and bring in what this model needs; see `Resident`."""
        with self._timed():
            own = [part for part in (resident.weights, resident.gradients if gradients else None) if part]
            state = resident.optimizer
            if resident is not self._now:
                self._now, self._training = resident, False
                self._step_to(resident)
                coming = self._next(resident) if ahead else None
                self._leave(part for other in self._residents for part in other.parts if part is not coming)
            for part in own:
                part.fetch()
            if state is not None and (gradients or optimizer):
                state.fetch()
            for part in own + ([state] if state is not None and optimizer else []):
                part.settle()
        self._training |= gradients
        if ahead and not self._training and (coming := self._next(resident)) is not None:
            coming.fetch()

    def rest(self, but: Part | None = None) -> None:
        """Send everything out that may leave, one part excepted."""
        with self._timed():
            self._now, self._training = None, False
            self._leave(part for other in self._residents for part in other.parts if part is not but)

    def close(self) -> None:
        """Give the host's room back. Models that are not on the device cannot be used any more."""
        if self._mover is not None:
            self._mover.close()

    @property
    def apart(self) -> dict[str, Callable[[], float]]:
        """The wait for moves, as a phase that lies inside those of an iteration (`timing.Phases`)."""
        return {} if self._mover is None else {"offload": lambda: self.seconds}

    @property
    def kept(self) -> int:
        """Bytes that lie on the host in the end: of all that leaves but gradients, which are only freed."""
        return sum(part.size for resident in self._residents for part in resident.parts if part.kept)

    def describe(self) -> str:
        """For the user: what leaves, how much of it is kept for this rank, and where."""
        if self._mover is None:
            return "none"
        return f"{', '.join(sorted(self._kinds))}: {self.kept / 2**30:.2f} GiB a rank, to {self._mover.place}"

    def _leave(self, parts: Iterable[Part]) -> None:
        """Out, and only then anything else in: the device need not hold both."""
        leaving = list(parts)
        for part in leaving:
            if self._now is None or part not in self._now.parts:
                part.leave()
        for part in leaving:
            if not part.here:
                part.settle()

    def _step_to(self, resident: Resident) -> None:
        for place in (*range(self._place + 1, len(self._order)), *range(min(self._place + 1, len(self._order)))):
            if self._order[place] is resident:
                self._place = place
                return

    def _next(self, resident: Resident) -> Part | None:
        """The weights of the model that comes after this one."""
        if not self._order or self._order[self._place] is not resident:
            return None
        return self._order[(self._place + 1) % len(self._order)].weights

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin


def _storages(tensors: Iterable[Tensor]) -> list[UntypedStorage]:
    """Each storage once, those without a byte left out."""
    found = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return [storage for storage in found.values() if storage.nbytes()]
