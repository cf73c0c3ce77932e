"""Who owns which page of the KV cache (`gipo_mc.models.kv_cache`): counted references, lowest free page first."""

from __future__ import annotations

import heapq


class Pages:
    """Pages 0 to count - 1. The same calls give the same pages, so that every rank of a replica decides alike."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))
        self._owners = [0] * count
        self.most_held = 0

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free pages with one owner each."""
        assert count <= self.free, "the caller asks how many are free"
        taken = [heapq.heappop(self._free) for _ in range(count)]
        for page in taken:
            self._owners[page] = 1
        self.most_held = max(self.most_held, self.count - self.free)
        return taken

    def share(self, pages: list[int]) -> list[int]:
        """The same pages for one owner more."""
        for page in pages:
            self._owners[page] += 1
        return list(pages)

    def give_back(self, pages: list[int]) -> None:
        """One owner less; a page without any is free."""
        for page in pages:
            self._owners[page] -= 1
            if not self._owners[page]:
                heapq.heappush(self._free, page)
