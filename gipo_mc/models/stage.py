"""One pipeline stage of a model on Megatron-core, with the head that a role needs: one chunk of consecutive layers, or
with an interleaved pipeline several chunks, each of other layers.

Policy and reference are `head="lm"`, the reward model is "reward", the critic is "critic" (value and group head), a
critic without groups "value". Only "lm" has a vocabulary projection; the others do not hold its memory. A stage returns
hidden states; the last stage's methods turn packed rows of them into logits, values, rewards or group logits, so that
only the positions that a loss needs are ever projected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
from torch import Tensor

from gipo_mc.models.execution import Execution
from gipo_mc.models.families import family_of
from gipo_mc.models.heads import GroupHead, ScalarHead
from gipo_mc.models.layers import block_spec
from gipo_mc.models.projection import logits
from gipo_mc.models.rotary import rotary_tables
from gipo_mc.models.shape import ModelShape
from gipo_mc.parallel.layout import Layout

HeadKind = Literal["lm", "value", "reward", "critic"]


class ModelChunk(GPTModel):
    """One chunk of a stage, in most layouts the only one. Build with `gipo_mc.models.build.build_model`.

    Attributes: shape, layout, head, execution; vocab_size (the true vocabulary), padded_vocab, and vocab_start, the
    first global id of this tensor rank's shard of the logits. Columns with a global id >= vocab_size are padding:
    consumers treat them as -inf (`gipo_mc.ops.token_statistics(vocab_start=, vocab_size=)` does).
    """

    output_layer: Any  # None where there is no vocabulary projection

    def __init__(
        self,
        config: TransformerConfig,
        shape: ModelShape,
        layout: Layout,
        *,
        head: HeadKind,
        groups: int,
        group_head: str,
        execution: Execution,
        number: int = 0,
    ) -> None:
        """config: one for all chunks of the stage. number: of this chunk among them."""
        padded_vocab, dtype = shape.padded_vocab(layout.tensor), config.params_dtype
        place = number if layout.virtual > 1 else None
        super().__init__(
            config=config,
            transformer_layer_spec=block_spec(config, place),  # type: ignore[arg-type]
            vocab_size=padded_vocab,
            max_sequence_length=shape.max_positions,
            pre_process=layout.is_first_stage and number == 0,
            post_process=layout.is_last_stage and number == layout.virtual - 1,
            share_embeddings_and_output_weights=shape.tied and head == "lm",
            position_embedding_type="rope",
            vp_stage=place,
        )
        self.shape, self.layout, self.head, self.groups, self.execution = shape, layout, head, groups, execution
        self.vocab_size, self.padded_vocab = shape.vocab_size, padded_vocab
        self.vocab_start = layout.tensor_rank * (padded_vocab // layout.tensor)
        self.rotary_pos_emb.inv_freq = family_of(shape).rotary_frequencies(shape).to(layout.device)
        #: Before the parameters are read in another way than by `forward`; the engine that trains the model sets it.
        self.gather_weights: Callable[[], None] = lambda: None
        if self.post_process:
            self._build_head(group_head, dtype)

    def named_chunks(self) -> Iterator[tuple[str, ModelChunk]]:
        """(what precedes the names of its parameters, chunk) of every chunk of the stage, in the order of layers."""
        yield "", self

    def _build_head(self, group_head: str, dtype: torch.dtype) -> None:
        hidden, device = self.shape.hidden_size, self.layout.device
        if self.head == "lm":
            # The hidden states are gathered before the projection (see forward): its input is the full sequence.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = self.layout.tensor > 1
            return
        self.output_layer = None
        if self.head == "reward":
            self.reward_head = ScalarHead(hidden, dtype, device)
        else:
            self.value_head = ScalarHead(hidden, dtype, device)
        if self.head == "critic":
            self.group_head = GroupHead(hidden, self.groups, group_head, dtype, device)

    def forward(self, tokens_BL: Tensor) -> Tensor:  # type: ignore[override]
        """Hidden states of this chunk for right-padded int64 [B, L] (every stage is given the tokens).

        Of the last chunk [L, B, H] after the final norm, the full sequence on every tensor rank; its gradient is
        expected complete on each of them, which the heads and `lm_logits` provide. Of others what the next one
        receives (the rank's share of the sequence under sequence parallelism, L padded to a multiple of the tensor
        ranks; under FP8, of what its kernels take). Chunks but the first read the tensor that `set_input_tensor` was
        given; Megatron's schedules do so.
        """
        batch, length = tokens_BL.shape
        extra = -length % self.execution.length_multiple(self.layout)
        if extra:
            tokens_BL = torch.cat([tokens_BL, tokens_BL.new_zeros(batch, extra)], dim=1)
        hidden = self.decoder(
            hidden_states=self.embedding(input_ids=tokens_BL, position_ids=None) if self.pre_process else None,
            attention_mask=None,
            rotary_pos_emb=rotary_tables(self.rotary_pos_emb.inv_freq, length + extra),
        )
        if not self.post_process:
            return hidden
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=False, group=self.tp_group
            )
        return hidden[:length]

    def passed_on(self, tokens_BL: Tensor) -> tuple[int, int, int]:
        """Shape of what this chunk hands to the next one, of these tokens."""
        batch, length = tokens_BL.shape
        length += -length % self.execution.length_multiple(self.layout)
        return length // self.layout.length_multiple, batch, self.shape.hidden_size

    @property
    def head_weight(self) -> Tensor:
        """[padded_vocab / tensor, H]: this rank's shard of the projection on the vocabulary."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight

    @property
    def fp32_logits(self) -> bool:
        """Are logits float32 while the model is not?"""
        return self.execution.fp32_logits and self.head_weight.dtype in (torch.bfloat16, torch.float16)

    def lm_logits(self, hidden_NH: Tensor) -> Tensor:
        """[N, H] -> [N, padded_vocab / tensor] in the model's dtype, or float32 as `execution` has it: this rank's
        shard of the vocabulary."""
        if self.fp32_logits:
            group = self.tp_group if self.layout.tensor > 1 else None
            return logits(hidden_NH, self.head_weight, float32=True, group=group)
        return self.output_layer(hidden_NH, weight=self.head_weight)[0]

    def value(self, hidden_NH: Tensor) -> Tensor:
        """[N, H] -> float32 [N]."""
        return self.value_head(hidden_NH)

    def reward(self, hidden_NH: Tensor) -> Tensor:
        """[N, H] -> float32 [N]."""
        return self.reward_head(hidden_NH)

    def group_logits(self, hidden_NH: Tensor) -> Tensor:
        """[N, H] -> float32 [N, M]."""
        return self.group_head(hidden_NH)

    def sharded_state_dict(  # type: ignore[override]
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """Megatron's, which insists on an output layer that only language models have here."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        if self.head == "lm":
            return super().sharded_state_dict(prefix, sharded_offsets, metadata)
        return MegatronModule.sharded_state_dict(self, prefix, sharded_offsets, metadata)


class ChunkedStage(torch.nn.Module):
    """The chunks that one rank of an interleaved pipeline holds. With P ranks and V chunks on each, chunk v of rank p
    has the (v P + p)-th of the P V parts of the layers: a micro-batch passes all ranks V times.

    It answers as its last chunk does, which on the last rank has the head. Names of parameters begin with
    "chunks.<number>."; in checkpoints they are those of the whole model, as in any layout.
    """

    def __init__(self, chunks: Sequence[ModelChunk]) -> None:
        super().__init__()
        self.chunks = torch.nn.ModuleList(chunks)
        last = chunks[-1]
        self.config, self.shape, self.layout, self.head, self.groups, self.execution = (
            last.config, last.shape, last.layout, last.head, last.groups, last.execution
        )  # fmt: skip
        self.vocab_size, self.padded_vocab, self.vocab_start = last.vocab_size, last.padded_vocab, last.vocab_start
        self.max_sequence_length = last.max_sequence_length
        #: See `ModelChunk.gather_weights`.
        self.gather_weights: Callable[[], None] = lambda: None

    @property
    def _last(self) -> ModelChunk:
        return self.chunks[-1]  # type: ignore[return-value]

    def named_chunks(self) -> Iterator[tuple[str, ModelChunk]]:
        """(what precedes the names of its parameters, chunk) of every chunk of the stage, in the order of layers."""
        for number, chunk in enumerate(self.chunks):
            yield f"chunks.{number}.", chunk  # type: ignore[misc]

    @property
    def head_weight(self) -> Tensor:
        """See `ModelChunk.head_weight`."""
        return self._last.head_weight

    @property
    def fp32_logits(self) -> bool:
        """Are logits float32 while the model is not?"""
        return self._last.fp32_logits

    def lm_logits(self, hidden_NH: Tensor) -> Tensor:
        """See `ModelChunk.lm_logits`."""
        return self._last.lm_logits(hidden_NH)

    def value(self, hidden_NH: Tensor) -> Tensor:
        """[N, H] -> float32 [N]."""
        return self._last.value(hidden_NH)

    def reward(self, hidden_NH: Tensor) -> Tensor:
        """[N, H] -> float32 [N]."""
        return self._last.reward(hidden_NH)

    def group_logits(self, hidden_NH: Tensor) -> Tensor:
        """[N, H] -> float32 [N, M]."""
        return self._last.group_logits(hidden_NH)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """Megatron's of every chunk. The keys are this module's names, those in the shards the whole model's."""
        state: ShardedStateDict = {}
        for own, chunk in self.named_chunks():
            found = chunk.sharded_state_dict(prefix, sharded_offsets, metadata)
            state |= {f"{prefix}{own}{name.removeprefix(prefix)}": value for name, value in found.items()}
        return state


#: What a rank holds of a model.
StageModel = ModelChunk | ChunkedStage
