"""Which responses say the same to different prompts, and how much each repeats itself, from token ids alone.

Two responses are near-identical where the Jaccard index of their sets of `SHINGLE` successive tokens is `NEAR` or more.
It is estimated by one-permutation hashing (Li, Owen and Zhang, NIPS 2012) with one bit a bin (Li and König, WWW 2010):
every shingle is hashed once and falls into one of `BINS` bins; a response keeps one bit of the least hash of each bin,
as a sign. Where two responses have the same least hash the product of their signs is 1, else 0 in the mean. So the sum
of products, over the number of bins that either fills, is the index in the mean. Done twice, with other bins, it has a
standard error of 0.05 for responses of 256 tokens, and takes two short responses that share nothing for alike less than
once in 15,000. A sentence of twenty tokens with one of them changed has the index 0.71, with two of them 0.5; what has
only its subject in common is far below. The work is two matrix products of [B, 2 BINS].
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gipo_mc.types import Sequences

SHINGLE, NEAR = 3, 0.5
#: Tokens of the pieces whose repetition is counted, as in seq-rep-4 of Welleck et al., arXiv 1908.04319.
REPEATED = 4
#: Rows of other prompts that a part of a batch needs before its commonest response says anything.
FEWEST_OTHERS = 8
BINS = 128
_BIN_BITS = (40, 48)  # where in a hash the number of its bin begins, the first and the second time
_NONE = 2**31  # in a bin that no shingle fell into; above every hash
_ROWS = 64  # looked at at a time: what that takes stays in a cache, where a batch at once needs new memory
_PAD = -1  # behind a response, so that one of fewer tokens than a shingle is a shingle too
_ODD = -7046029254386353131  # 2^64 over the golden ratio: its multiples spread over all bits


@dataclass(frozen=True)
class Likeness:
    """identical_B: bool [B], the response is, token for token, also that to another prompt of the batch.
    other_BB: bool [B, B], the two rows have different prompts. near_BB: and near-identical responses; symmetric.
    """

    identical_B: Tensor
    other_BB: Tensor
    near_BB: Tensor

    @property
    def near_B(self) -> Tensor:
        """bool [B]: is there a near-identical response to another prompt?"""
        return self.near_BB.any(dim=1)

    def shares(self, rows: Sequence[int] | None = None) -> Tensor:
        """For each row the share of the other prompts' responses that are near-identical to it, float64 [b]; 0 where
        there are fewer than `FEWEST_OTHERS`. rows: the part of the batch to look at, all of it by default."""
        near_bb, other_bb = self.near_BB, self.other_BB
        if rows is not None:
            rows_b = torch.tensor(rows, device=near_bb.device)
            near_bb, other_bb = near_bb[rows_b][:, rows_b], other_bb[rows_b][:, rows_b]
        others_b = other_bb.sum(1)
        return torch.where(others_b >= FEWEST_OTHERS, near_bb.sum(1).double() / others_b.clamp(min=1), 0.0)

    def commonest(self, rows: Sequence[int] | None = None) -> float:
        """The largest of `shares`: how much one answer has become that to everything."""
        return float(self.shares(rows).max()) if len(self.identical_B) else 0.0


def likeness(sequences: Sequences) -> Likeness:
    """Compare every response with those to other prompts: other tokens, not another row. Pure; [B, B] bytes twice."""
    tokens_BL, prompt_B = sequences.tokens_BL, sequences.prompt_length_B
    ids = tokens_BL.cpu().numpy()
    prompt_ends, ends = prompt_B.tolist(), (prompt_B + sequences.response_length_B).tolist()
    prompts = _numbered([row[:end].tobytes() for row, end in zip(ids, prompt_ends)])
    texts = _numbered([row[start:end].tobytes() for row, start, end in zip(ids, prompt_ends, ends)])
    numbers = (torch.tensor(number, dtype=torch.int32, device=tokens_BL.device) for number in (prompts, texts))
    prompt_id_B, text_B = numbers
    other_BB = prompt_id_B[:, None] != prompt_id_B[None]
    same_BB = (text_B[:, None] == text_B[None]) & other_BB
    sign_BN = torch.cat([_signatures(*part) for part in _parts(sequences)])
    return Likeness(same_BB.any(1), other_BB, (_near(sign_BN) & other_BB) | same_BB)


def repetition(sequences: Sequences) -> Tensor:
    """Share of the `REPEATED`-token pieces of each response that it has had before, float64 [B]: 0 where all differ,
    near 1 in a loop, 0 of a response of fewer tokens."""
    return torch.cat([_repetition(*part) for part in _parts(sequences)])


def _repetition(tokens_BT: Tensor, length_B: Tensor) -> Tensor:
    hash_BW, is_piece_BW = _pieces(tokens_BT, length_B, REPEATED)
    hash_BW.masked_fill_(~is_piece_BW, torch.iinfo(torch.int64).max)  # what is no piece stands last
    # Not torch.sort, which also wants the places and takes 15 times as long.
    sorted_BW = torch.from_numpy(np.sort(hash_BW.cpu().numpy(), axis=1)).to(length_B.device)
    again_BW = (sorted_BW[:, 1:] == sorted_BW[:, :-1]) & is_piece_BW[:, 1:]
    return again_BW.sum(1).double() / is_piece_BW.sum(1)


def response_tokens(sequences: Sequences) -> Tensor:
    """Token ids of the responses, int64 [B, T] with T the longest, -1 behind each."""
    length_B = sequences.response_length_B
    width = int(length_B.max()) if len(length_B) else 0
    time_T = torch.arange(width, device=length_B.device)
    place_BT = (sequences.prompt_length_B[:, None] + time_T).clamp(max=max(sequences.tokens_BL.shape[1] - 1, 0))
    return sequences.tokens_BL.gather(1, place_BT).masked_fill(time_T >= length_B[:, None], _PAD)


def _parts(sequences: Sequences) -> Iterator[tuple[Tensor, Tensor]]:
    """(`response_tokens`, their lengths) of `_ROWS` responses at a time."""
    return zip(response_tokens(sequences).split(_ROWS), sequences.response_length_B.split(_ROWS))


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _pieces(tokens_BT: Tensor, length_B: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(hash of `size` successive tokens, int64 [B, W]; which belong to the response: at least the first)."""
    short = max(size - tokens_BT.shape[1], 0)
    tokens_BT = torch.nn.functional.pad(tokens_BT, (0, short), value=_PAD)
    width = tokens_BT.shape[1] - size + 1
    hash_BW = torch.zeros_like(tokens_BT[:, :width])
    for offset in range(size):  # integers wrap around; in place, because new memory costs more than the arithmetic
        hash_BW.bitwise_xor_(tokens_BT[:, offset : offset + width]).mul_(_ODD)
        hash_BW.bitwise_xor_(hash_BW >> 29)
    count_B = (length_B - size + 1).clamp(min=1)
    return hash_BW, torch.arange(width, device=length_B.device) < count_B[:, None]


def _signatures(tokens_BT: Tensor, length_B: Tensor) -> Tensor:
    """The sign of each bin's least hash, float32 [B, 2 BINS]: 1 or -1, 0 in an empty bin."""
    hash_BW, is_piece_BW = _pieces(tokens_BT, length_B, SHINGLE)
    value_BW = (hash_BW & 0x7FFFFFFF).masked_fill_(~is_piece_BW, _NONE)
    least_BN = value_BW.new_full((len(tokens_BT), BINS * len(_BIN_BITS)), _NONE)
    for time, bits in enumerate(_BIN_BITS):
        bin_BW = (hash_BW >> bits).bitwise_and_(BINS - 1)
        least_BN[:, BINS * time : BINS * (time + 1)].scatter_reduce_(1, bin_BW, value_BW, "amin")
    return (1 - 2 * (least_BN & 1)).masked_fill_(least_BN == _NONE, 0).float()


def _near(sign_BN: Tensor) -> Tensor:
    """bool [B, B]: is the estimated Jaccard index at least `NEAR`?"""
    filled_BN = sign_BN.abs()
    least_B = NEAR * filled_BN.sum(1)
    # Products of signs, and NEAR of the bins that both fill, added to what either fills: one product, exact in float32.
    both_BB = torch.cat([sign_BN, NEAR * filled_BN], dim=1) @ torch.cat([sign_BN, filled_BN], dim=1).T
    return both_BB.sub_(least_B) >= least_B[:, None]
