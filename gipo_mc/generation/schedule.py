"""Which rows of a batch run when: slots, the queue for them, and the pages of the KV cache.

A row waits until a slot and the pages of its longest possible sequence are free; then its prompt is run whole (prefill)
and the row decodes one token in every pass of its group until it ends, and the next row takes its slot. Rows with the
same prompt are admitted side by side and share its prefill and the full pages of it. On a pipeline there can be as
many groups of slots as stages, so that each stage always has a group to work on.

Everything here is integers on the host, a function of what it was told: every rank of a replica holds one and comes to
the same plan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gipo_mc.generation.pages import Pages
from gipo_mc.models.kv_cache import PAGE, pages_for


@dataclass(frozen=True)
class Prefill:
    """Prompts to run, each with the rows that it is for; every row gets its first token from this pass.

    rows, slots: of each prompt, the rows that share it and the slots that they were given; the first runs.
    pages: of each slot, the pages of its sequence.
    copies: (from, to) pages, once the prompts were run: the last, partly filled page of a shared prompt.
    """

    group: int
    rows: list[list[int]] = field(default_factory=list)
    slots: list[list[int]] = field(default_factory=list)
    pages: dict[int, list[int]] = field(default_factory=dict)
    copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def all_rows(self) -> list[int]:
        """Rows that get a token, in the order of their prompts."""
        return [row for rows in self.rows for row in rows]


@dataclass(frozen=True)
class Decode:
    """One token more for these rows, which stand in these slots."""

    group: int
    rows: list[int]
    slots: list[int]

    @property
    def all_rows(self) -> list[int]:
        """Rows that get a token."""
        return self.rows


Job = Prefill | Decode


class Schedule:
    """The plan of one batch.

    prompts: token ids of each row; equal prompts are shared.
    slots: rows that decode at a time. groups: into how many groups they are divided.
    pages: of the KV cache, at least those of one row. prefill_tokens: most tokens of one prefill; a longer prompt runs
        alone.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        slots: int,
        pages: int,
        prefill_tokens: int,
        groups: int = 1,
    ) -> None:
        self.prompts, self._new, self._prefill_tokens = prompts, max_new_tokens, prefill_tokens
        self._queue = deque(_families(prompts))
        self.pages = Pages(pages)
        self._free_slots = [list(range(slots))[group::groups] for group in range(groups)]
        self._running: list[dict[int, int]] = [{} for _ in range(groups)]  # row -> slot
        self._held: dict[int, list[int]] = {}  # row -> pages
        self._drawn = [0] * len(prompts)

    @property
    def groups(self) -> int:
        """Into how many the slots are divided."""
        return len(self._running)

    @property
    def is_over(self) -> bool:
        """Has every row ended?"""
        return not self._queue and not any(self._running)

    def next_job(self, group: int) -> Job | None:
        """What this group of slots does next; None where it has nothing to do. Its last job must be finished."""
        job: Job = self._admit(group)
        if not job.rows:
            running = self._running[group]
            job = Decode(group, list(running), list(running.values()))
        for row in job.all_rows:
            self._drawn[row] += 1
        return job if job.rows else None

    def tokens(self, job: Job) -> int:
        """Tokens that run through the layers in this job."""
        if isinstance(job, Decode):
            return len(job.rows)
        return sum(len(self.prompts[rows[0]]) for rows in job.rows)

    def is_due(self, job: Job) -> bool:
        """Is some row of this job as long as allowed?"""
        return any(self._drawn[row] >= self._new for row in job.all_rows)

    def end(self, rows: Iterable[int]) -> None:
        """These rows have ended: their slots and pages are free."""
        for row in rows:
            group = next(group for group, running in enumerate(self._running) if row in running)
            self._free_slots[group].append(self._running[group].pop(row))
            self._free_slots[group].sort()
            self.pages.give_back(self._held.pop(row))

    def _admit(self, group: int) -> Prefill:
        """Give free slots to waiting rows, as long as pages and the prefill's tokens last, in the queue's order."""
        prefill, tokens = Prefill(group), 0
        while self._queue and self._free_slots[group] and (share := self._share(group)):
            family = self._queue[0]
            length = len(self.prompts[family[0]])
            if prefill.rows and tokens + length > self._prefill_tokens:
                break
            admitted = self._place(prefill, group, family, share)
            if not admitted:
                break
            tokens += length
            if admitted == len(family):
                self._queue.popleft()
            else:
                self._queue[0] = family[admitted:]
                break
        return prefill

    def _share(self, group: int) -> int:
        """Rows that this group may still take: the first group must not take all of a short queue."""
        rows = sum(map(len, self._queue)) + sum(map(len, self._running))
        return max(0, -(-rows // len(self._running)) - len(self._running[group]))

    def _place(self, prefill: Prefill, group: int, family: list[int], most: int) -> int:
        """Put as many rows of one prompt into slots as there is room for; how many."""
        length = len(self.prompts[family[0]])
        full, whole = length // PAGE, pages_for(length + self._new)
        room = min(len(family), len(self._free_slots[group]), most)
        while room and whole + (room - 1) * (whole - full) > self.pages.free:
            room -= 1
        if not room:
            return 0
        rows, slots = family[:room], [self._free_slots[group].pop(0) for _ in range(room)]
        first = self.pages.take(whole)
        for row, slot in zip(rows, slots, strict=True):
            held = first if row == rows[0] else self.pages.share(first[:full]) + self.pages.take(whole - full)
            self._held[row] = prefill.pages[slot] = held
            self._running[group][row] = slot
            if held is not first and length % PAGE:
                prefill.copies.append((first[full], held[full]))
        prefill.rows.append(rows)
        prefill.slots.append(slots)
        return room


def _families(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows with the same prompt side by side; longest prompts first, so that the shortest ones end the batch."""
    families: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        families.setdefault(tuple(prompt), []).append(row)
    return sorted(families.values(), key=lambda rows: -len(prompts[rows[0]]))
