"""The rows of a batch on the device: how far each has come, and what a drawn token changes.

Everything is a tensor of fixed size and nothing here waits for the device, so that a step can be captured as a CUDA
graph; the host looks at `finished_B` every few positions. The last of the B + 1 rows is nobody's: passes that need a
fixed number of rows are filled up with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gipo_mc.generation.engine import Generated, Sampling


class Rows:
    """State of `count` rows on `device`, the same on every rank of a replica. `start` begins a batch."""

    def __init__(self, count: int, sampling: Sampling, device: torch.device) -> None:
        width = sampling.max_new_tokens
        self.sampling, self.count = sampling, count
        self._end_ids = torch.tensor(sorted({sampling.eos_id, *sampling.stop_ids}), device=device)
        self.prompt_length_B = torch.ones(count + 1, dtype=torch.int64, device=device)
        self.token_B = torch.zeros(count + 1, dtype=torch.int64, device=device)
        self.length_B = torch.zeros(count + 1, dtype=torch.int64, device=device)
        self.ended_B = torch.zeros(count + 1, dtype=torch.bool, device=device)
        self.broken_B = torch.zeros(count + 1, dtype=torch.bool, device=device)
        self.response_BT = torch.zeros(count + 1, width, dtype=torch.int64, device=device)
        self.logp_BT = torch.zeros(count + 1, width, dtype=torch.float32, device=device)
        self._uniform_BT = None
        if not sampling.greedy:
            self._uniform_BT = torch.zeros(count + 1, width, dtype=torch.float64, device=device)

    def start(self, prompt_lengths: Sequence[int], uniforms_BT: Tensor | None) -> None:
        """Nothing is generated yet. uniforms_BT: float64 [B, >= max_new_tokens]; None when greedy."""
        self.prompt_length_B[: self.count] = torch.tensor(prompt_lengths)
        for state in (self.token_B, self.length_B, self.ended_B, self.broken_B):
            state.zero_()
        if self._uniform_BT is not None:
            assert uniforms_BT is not None, "sampling needs uniforms"
            self._uniform_BT[: self.count] = uniforms_BT[:, : self.sampling.max_new_tokens]

    @property
    def nobody(self) -> int:
        """The row that fills up a pass."""
        return self.count

    @property
    def finished_B(self) -> Tensor:
        """bool [B + 1]: ended by an end id or a stop, as long as allowed, or broken."""
        return self.ended_B | self.broken_B | (self.length_B >= self.sampling.max_new_tokens)

    def position_n(self, row_n: Tensor) -> Tensor:
        """Where the newest token of each row stands in its sequence; -1 for nobody's row."""
        return torch.where(row_n == self.nobody, -1, self.prompt_length_B[row_n] + self.length_B[row_n] - 1)

    def uniform_n(self, row_n: Tensor) -> Tensor | None:
        """float64 [n]: the number that decides the next token of each row."""
        if self._uniform_BT is None:
            return None
        return self._uniform_BT[row_n, self._next_n(row_n)]

    def append(self, row_n: Tensor, token_n: Tensor, logp_n: Tensor) -> None:
        """The next token of each row (int64 [n], -1: its logits are broken) and its log-prob. Rows that are finished
        stay as they are."""
        live_n = ~self.finished_B[row_n] & (row_n != self.nobody)
        next_n = self._next_n(row_n)
        good_n = live_n & (token_n >= 0)
        self.response_BT[row_n, next_n] = torch.where(good_n, token_n, self.response_BT[row_n, next_n])
        self.logp_BT[row_n, next_n] = torch.where(good_n, logp_n.float(), self.logp_BT[row_n, next_n])
        self.token_B[row_n] = torch.where(good_n, token_n, self.token_B[row_n])
        self.length_B[row_n] += good_n
        self.broken_B[row_n] |= live_n & (token_n < 0)
        self.ended_B[row_n] |= good_n & (token_n[:, None] == self._end_ids).any(dim=1)

    def stop(self, row: int, length: int) -> None:
        """This row ended with its `length`-th token; what came after it is dropped."""
        self.length_B[row], self.ended_B[row] = length, True

    def generated(self, counts: dict[str, float]) -> Generated:
        """The B responses, what comes after their end blanked."""
        length_B = self.length_B[: self.count].clone()
        beyond_BT = torch.arange(self.sampling.max_new_tokens, device=length_B.device) >= length_B[:, None]
        return Generated(
            response_BT=self.response_BT[: self.count].masked_fill(beyond_BT, self.sampling.eos_id),
            response_length_B=length_B,
            sampler_logp_BT=self.logp_BT[: self.count].masked_fill(beyond_BT, 0.0),
            truncated_B=~self.ended_B[: self.count],
            counts=counts,
        )

    def _next_n(self, row_n: Tensor) -> Tensor:
        """Where the next token goes; a finished row's stays inside the tensor and is not written."""
        return self.length_B[row_n].clamp(max=self.sampling.max_new_tokens - 1)
