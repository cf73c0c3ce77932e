"""Bytes that a pass through one stage takes beside the model's state: what the backward pass needs, and temporaries.

The terms are the tensors that the code makes, counted from its modules without TransformerEngine. Norms and SwiGLU are
one operator each on CUDA and, by kernels of this project (`gipo_mc.ops.layers`), in float32 on a CPU; in bfloat16 there
torch's RMS norm keeps one tensor more and SwiGLU two. In float32 on a CPU attention is one kernel, too, which turns
queries and keys by itself. benchmarks/planning/peaks.py holds the CPU's terms to real runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from gipo_mc.models.shape import ModelShape
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.shapes import FAMILIES
from gipo_mc.plan.state import FLOAT

#: `gipo_mc.ops.layers.causal_attention.LONGEST`, which imports torch; a test compares.
LONGEST = 1024


@dataclass(frozen=True)
class Activations:
    """Of a model on this grid. width: bytes of a number. cuda: on a GPU. positions: of the longest sequence.
    recompute, fp32_logits: the options."""

    shape: ModelShape
    grid: Grid
    width: int
    cuda: bool
    positions: int
    recompute: str = "none"
    fp32_logits: bool = False

    @property
    def _hidden(self) -> int:
        return self.shape.hidden_size

    @property
    def _feed_forward(self) -> int:
        return self.shape.intermediate_size // self.grid.tensor

    @property
    def _heads(self) -> int:
        return self.shape.heads * self.shape.head_dim // self.grid.tensor

    @property
    def _keys(self) -> int:
        return self.shape.kv_heads_on(self.grid.tensor) * self.shape.head_dim

    @property
    def _gathered(self) -> int:
        """Projected heads of all tensor ranks, which lie together where there are fewer key-value heads than ranks."""
        if self.shape.kv_heads >= self.grid.tensor:
            return 0
        return (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim

    @property
    def _kernels(self) -> bool:
        """Does a layer stand on the kernels of `gipo_mc.ops.layers`?"""
        return not self.cuda and self.width == FLOAT

    @property
    def _fused(self) -> bool:
        """Are norms and SwiGLU one operator each?"""
        return self.cuda or self._kernels

    @property
    def _normed_heads(self) -> bool:
        return FAMILIES[self.shape.family][1]

    @property
    def _joined(self) -> bool:
        """Is all between the two projections of attention one kernel?"""
        return self._kernels and not (self._gathered or self._normed_heads) and self.positions <= LONGEST

    @property
    def _middle(self) -> int:
        return self._feed_forward * (3 if self._fused else 5)

    def states(self, tokens: int) -> int:
        """Hidden states of a micro-batch between two layers: shared between tensor ranks under sequence parallelism."""
        return tokens // self.grid.sharded_sequence * self._hidden * self.width

    def kept_by_layer(self, tokens: int) -> int:
        """What one layer keeps for its backward pass: under full recomputation its input, else what it makes."""
        return self.states(tokens) if self.recompute == "full" else self._made_by_layer(tokens)

    def _made_by_layer(self, tokens: int) -> int:
        """For both norms the input and the result (without fused operators the normalised input, too), projected heads
        with the values in them, turned queries and keys, the attention's result and its log-sums, and the middle of the
        feed-forward. The kernels keep a number for each row of a norm, two for each query, and no turned heads."""
        norms = 2 * (2 if self._fused else 3) * self.states(tokens)
        if self._kernels:
            norms += 2 * tokens // self.grid.sharded_sequence * FLOAT
        return norms + self._made_by_attention(tokens) + tokens * self._middle * self.width

    def _made_by_attention(self, tokens: int) -> int:
        turned = self._heads + self._keys
        projected = self._heads + 2 * self._keys
        heads = self.shape.heads // self.grid.tensor
        sums, again = tokens * heads * FLOAT, self.recompute == "selective"
        # Queries that share keys do not lie side by side in the projection: where they are needed, a copy of them.
        copied = self._heads * (self.shape.heads > self.shape.kv_heads)
        if self._gathered:  # then the values are copied out of them, and the norms of heads keep their input
            projected = self._keys + (self._gathered if self._normed_heads else 0)
        if self._joined:
            turned, sums = 0, 0 if again else 2 * sums
        elif self._kernels and self._normed_heads:
            # The norms of heads are made before what is made again, and keep their input and a number for each head.
            projected += 0 if self._gathered else copied
            sums = sums * (not again) + tokens * (heads + self._keys // self.shape.head_dim) * FLOAT
        elif again:  # of what is gathered the queries are a part, which keeps all of it
            turned, sums = self._gathered or copied, 0
        return tokens * (projected + turned + self._heads) * self.width + sums

    def kept_by_stage(self, tokens: int, *, last: bool) -> int:
        """What a stage keeps of one micro-batch, the final norm and the gathered states included on the last one."""
        kept = self.shape.layers // self.grid.pipeline * self.kept_by_layer(tokens)
        if last:
            kept += (2 if self._fused else 3) * self.states(tokens)
            if self.grid.sharded_sequence > 1:
                kept += tokens * self._hidden * self.width
        return kept

    def forward_of_layer(self, tokens: int) -> int:
        """Most that lies together while a layer runs without gradients: the states, their norm, and the larger of
        attention and feed-forward."""
        gathered = tokens * self._hidden * self.width if self.grid.sharded_sequence > 1 else 0
        attention = 3 * self._heads + 3 * self._keys + 2 * self._gathered
        return 4 * self.states(tokens) + gathered + tokens * max(attention, self._middle) * self.width

    def backward_of_layer(self, tokens: int) -> int:
        """Gradients in the feed-forward's backward pass, beside what the layer keeps: of its middle, and of the weight
        that is multiplied, in the model's dtype before it is added to the float32 buffer. Under full recomputation also
        what the layer has made again."""
        again = self._made_by_layer(tokens) if self.recompute == "full" else 0
        weight = self._feed_forward * self._hidden * self.width
        gathered = 2 * tokens * self._hidden * self.width if self.grid.sharded_sequence > 1 else 0
        middle = tokens * self._feed_forward * self.width
        if self.cuda:
            return again + self.states(tokens) + gathered + middle + max(weight, middle)
        return again + gathered + 2 * middle + weight

    def head(self, responses: int, logit_rows: int, *, logits: bool, backward: bool) -> dict[str, int]:
        """On the last stage: packed states of the response tokens, and logits, `logit_rows` of them at a time (0: all),
        with the gradient of the projection."""
        packed = responses * self._hidden * self.width
        if not logits:
            # The heads compute in float32.
            return {"activations": packed + responses * self._hidden * FLOAT * (2 if backward else 1), "logits": 0}
        columns = self.shape.padded_vocab(self.grid.tensor) // self.grid.tensor
        parts = -(-responses // logit_rows) if logit_rows else 1
        rows = -(-responses // parts)
        weight = columns * self._hidden * self.width if backward else 0
        # The gradient takes the place of float32 logits, and is multiplied as a copy in the model's dtype.
        each = self._logit + (self.width if backward and self._logit > self.width else 0)
        return {"activations": packed * (2 if backward else 1), "logits": rows * columns * each + weight}

    def generation(self, prompts: int, rows: int) -> dict[str, int]:
        """Of a pass over `prompts` prompt tokens, or over one token of each of `rows` rows, whichever takes more."""
        tokens = max(prompts, rows)
        middle = 2 * self._heads + 2 * self._keys + self._heads
        layer = tokens * (3 * self._hidden + max(middle, 3 * self._feed_forward)) * self.width
        columns = self.shape.padded_vocab(self.grid.tensor) // self.grid.tensor
        # The shards of the vocabulary are gathered, then laid side by side.
        copies = 1 if self.grid.tensor == 1 else 1 + 2 * self.grid.tensor
        return {"activations": layer, "logits": rows * columns * copies * self._logit}

    @property
    def _logit(self) -> int:
        """Bytes of a logit."""
        return max(self.width, FLOAT) if self.fp32_logits else self.width
