"""Bytes that a pass through one stage takes beside the model's state: what the backward pass needs, and temporaries.

The terms are the tensors that the code makes, counted from its modules without TransformerEngine. On a CPU torch's RMS
norm keeps one tensor more and SwiGLU, which Megatron fuses on CUDA only, two; benchmarks/planning/peaks.py holds the
CPU's terms to real runs. Legend: n tokens of a micro-batch with padding, h hidden, f feed-forward, q projected heads,
all of this rank's share.
"""

from __future__ import annotations

from dataclasses import dataclass

from gipo_mc.models.shape import ModelShape
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.state import FLOAT


@dataclass(frozen=True)
class Activations:
    """Of a model on this grid. width: bytes of a number. cuda: fused operators. recompute, fp32_logits: the options."""

    shape: ModelShape
    grid: Grid
    width: int
    cuda: bool
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
        return self.shape.kv_heads * self.shape.head_dim // self.grid.tensor

    def states(self, tokens: int) -> int:
        """Hidden states of a micro-batch between two layers: shared between tensor ranks under sequence parallelism."""
        return tokens // self.grid.sharded_sequence * self._hidden * self.width

    def kept_by_layer(self, tokens: int) -> int:
        """What one layer keeps for its backward pass: under full recomputation its input, else what it makes."""
        return self.states(tokens) if self.recompute == "full" else self._made_by_layer(tokens)

    def _made_by_layer(self, tokens: int) -> int:
        """For both norms the input and the result (on a CPU the normalised
        input, too), projected heads with the values in them, turned queries and keys, the attention's result and its
        log-sums, and the feed-forward's middle."""
        norms = 2 * (2 if self.cuda else 3) * self.states(tokens)
        turned = self._heads + self._keys
        sums = tokens * (self.shape.heads // self.grid.tensor) * FLOAT
        if self.recompute == "selective":
            # They are made again. Queries that share keys do not lie side by side in the projection: a copy of them.
            turned, sums = self._heads * (self.shape.heads > self.shape.kv_heads), 0
        attention = (self._heads + 2 * self._keys) + turned + self._heads
        middle = self._feed_forward * (3 if self.cuda else 5)
        return norms + tokens * (attention + middle) * self.width + sums

    def kept_by_stage(self, tokens: int, *, last: bool) -> int:
        """What a stage keeps of one micro-batch, the final norm and the gathered states included on the last one."""
        kept = self.shape.layers // self.grid.pipeline * self.kept_by_layer(tokens)
        if last:
            kept += (2 if self.cuda else 3) * self.states(tokens)
            if self.grid.sharded_sequence > 1:
                kept += tokens * self._hidden * self.width
        return kept

    def forward_of_layer(self, tokens: int) -> int:
        """Most that lies together while a layer runs without gradients: the states, their norm, and the larger of
        attention and feed-forward."""
        gathered = tokens * self._hidden * self.width if self.grid.sharded_sequence > 1 else 0
        attention = 3 * self._heads + 3 * self._keys
        middle = self._feed_forward * (3 if self.cuda else 5)
        return 4 * self.states(tokens) + gathered + tokens * max(attention, middle) * self.width

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
