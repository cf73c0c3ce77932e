"""Which rows share a micro-batch, and which replica runs them: little padding, and as many tokens for each replica.

Only lengths decide, so every rank finds the same plan and knows what the others run.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

#: The units (rows, or pairs) of each micro-batch of each replica: `plan[replica][micro-batch]`.
Plan = list[list[list[int]]]
#: What a pass costs whatever it holds, in tokens. Reading the weights takes an H100 as long as the arithmetic of 118
#: tokens at 40 % of its 989 bf16 TFLOP/s and 3.35 TB/s, for any size of model; a CPU core fewer.
TOKENS_OF_A_PASS = 128


@dataclass(frozen=True)
class Packer:
    """Cuts a batch into micro-batches.

    lengths: of each unit of rows, that of its longest row, as it is padded. unit: rows of a unit.
    units: most units of a micro-batch, at least 1. tokens: most tokens of a micro-batch, padding included; 0: any
    number. A unit with more is a micro-batch of its own.
    """

    lengths: Sequence[int]
    units: int
    tokens: int = 0
    unit: int = 1

    def plan(self, replicas: int) -> Plan:
        """The micro-batches of each replica, the largest first: memory shows at once whether it is enough.

        Units are sorted by length and cut into micro-batches about as large, in multiples of the replicas: as many as
        the bounds ask for, and more while the padding and the imbalance that one more each saves are worth the pass.
        A replica is without a unit only where there are fewer units than replicas.
        """
        count = len(self._cut(self._most))
        best = self._deal(count, replicas)
        while True:
            count += replicas
            more = self._deal(count, replicas)
            if self._cost(more) >= self._cost(best):
                return best
            best = more

    def padding(self, plan: Plan, real: int) -> float:
        """Share of padding among all tokens that the replicas run, 0 to 1; `real` of them are none."""
        run = sum(self._size(part) for replica in plan for part in replica)
        return 1.0 - real / run

    @cached_property
    def _order(self) -> list[int]:
        return sorted(range(len(self.lengths)), key=lambda number: (-self.lengths[number], number))

    @property
    def _most(self) -> int:
        return self.tokens or len(self.lengths) * self.unit * max(self.lengths)

    def _size(self, part: Sequence[int]) -> int:
        """Tokens of a micro-batch that begins with its longest unit."""
        return len(part) * self.unit * self.lengths[part[0]]

    def _cost(self, plan: Plan) -> int:
        """Of the busiest replica, in tokens."""
        return max(sum(self._size(part) + TOKENS_OF_A_PASS for part in replica) for replica in plan)

    def _cut(self, most: int) -> list[list[int]]:
        """Micro-batches of at most `most` tokens, from the longest units to the shortest."""
        parts: list[list[int]] = []
        room = 0
        for number in self._order:
            if not room:
                parts.append([])
                room = max(min(self.units, most // (self.unit * self.lengths[number])), 1)
            parts[-1].append(number)
            room -= 1
        return parts

    def _deal(self, count: int, replicas: int) -> Plan:
        """`count` micro-batches, rounded up to a multiple of the replicas, each given, from the largest on, to the
        replica with the fewest tokens so far (Graham 1969, doi 10.1137/0117039)."""
        count = min(-(-count // replicas) * replicas, len(self.lengths))
        low, high = 0, self._most  # the smallest bound that so many micro-batches can keep
        while low < high:
            middle = (low + high) // 2
            if len(self._cut(middle)) <= count:
                high = middle
            else:
                low = middle + 1
        parts = self._cut(low)
        divisible = [(-self._size(part), number) for number, part in enumerate(parts) if len(part) > 1]
        heapq.heapify(divisible)
        while len(parts) < count:
            _, number = heapq.heappop(divisible)
            largest = parts[number]
            parts.append([largest.pop() for _ in range(len(largest) // 2)][::-1])
            for half in (number, len(parts) - 1):
                if len(parts[half]) > 1:
                    heapq.heappush(divisible, (-self._size(parts[half]), half))
        plan: Plan = [[] for _ in range(replicas)]
        loads = [(0, replica) for replica in range(replicas)]
        for part in sorted(parts, key=lambda part: (-self._size(part), part)):
            load, replica = heapq.heappop(loads)
            plan[replica].append(part)
            heapq.heappush(loads, (load + self._size(part), replica))
        return plan
