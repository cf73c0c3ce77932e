"""Which mapping each parameter of a stage has: the family's for its layers, and those that all families share."""

from __future__ import annotations

import torch

from gipo_mc.models.families import family_of
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import ModelChunk, StageModel
from gipo_mc.models.weights.mapping import Mapping, Rank, TensorShapes, VocabRows, WeightSource, Whole

EMBEDDING, OUTPUT, FINAL_NORM, SCORE = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "score.weight",
)
#: Parameters that hold `SCORE`.
HEADS = frozenset({"value_head.weight", "reward_head.weight"})

#: TransformerEngine keeps a norm's weight inside the linear layer behind it.
_WITHOUT_ENGINE = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def stage_mappings(model: StageModel) -> dict[str, Mapping]:
    """Parameter name of this stage -> its mapping, in the order of the network. The group head, which Hugging Face's
    models do not have, is left out; the output projection of a tied model on a later stage reads the embedding."""
    return {
        prefix + name: mapping
        for prefix, chunk in model.named_chunks()
        for name, mapping in _chunk_mappings(chunk).items()
    }


def _chunk_mappings(model: ModelChunk) -> dict[str, Mapping]:
    shape = model.shape
    mappings: dict[str, Mapping] = {}
    for name, _ in model.named_parameters():
        if name.startswith("group_head."):
            continue
        if name == "embedding.word_embeddings.weight":
            mappings[name] = VocabRows(EMBEDDING, shape.vocab_size, model.padded_vocab, shape.hidden_size)
        elif name == "output_layer.weight":
            tensor = EMBEDDING if model.share_embeddings_and_output_weights else OUTPUT
            mappings[name] = VocabRows(tensor, shape.vocab_size, model.padded_vocab, shape.hidden_size)
        elif name == "decoder.final_layernorm.weight":
            mappings[name] = Whole(FINAL_NORM, (shape.hidden_size,))
        elif name in HEADS:
            mappings[name] = Whole(SCORE, (1, shape.hidden_size))
        else:
            mappings[name] = _layer_mapping(model, name)
    return mappings


def _layer_mapping(model: ModelChunk, name: str) -> Mapping:
    _, _, local, part = name.split(".", 3)
    layer = model.decoder.layers[int(local)].layer_number - 1
    table = family_of(model.shape).layer_tensors(model.shape, f"model.layers.{layer}.")
    part = _WITHOUT_ENGINE.get(part, part)
    assert part in table, f"the family {model.shape.family} has no Hugging Face tensor for the parameter {name}"
    return table[part]


def trunk_tensors(shape: ModelShape) -> TensorShapes:
    """Hugging Face name -> shape of every tensor of the trunk (no output projection, no head)."""
    tensors: TensorShapes = {EMBEDDING: (shape.vocab_size, shape.hidden_size)}
    for layer in range(shape.layers):
        for mapping in family_of(shape).layer_tensors(shape, f"model.layers.{layer}.").values():
            tensors |= mapping.tensors()
    return tensors | {FINAL_NORM: (shape.hidden_size,)}


@torch.no_grad()
def load_parameters(model: StageModel, source: WeightSource, *, skip: frozenset[str] = frozenset()) -> None:
    """Fill the parameters of this stage from a source, one at a time, except those named in `skip`."""
    rank = Rank(model.layout.tensor_rank, model.layout.tensor)
    for _, chunk in model.named_chunks():
        parameters = dict(chunk.named_parameters())
        for name, mapping in _chunk_mappings(chunk).items():
            if name not in skip:
                parameters[name].copy_(mapping.load(source, rank))
