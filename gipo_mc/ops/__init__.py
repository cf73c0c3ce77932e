"""Native ops: tensors in, tensors out. Each has an eager reference of the same signature in `gipo_mc.ops.reference`,
`gipo_mc.ops.reference_attention` or `gipo_mc.ops.layers.reference`.

`GIPO_MC_OPS=reference` makes these functions use the references.
"""

from gipo_mc.ops.checks import KlEstimator, SignalForm
from gipo_mc.ops.group_objective import group_objective, group_variance
from gipo_mc.ops.inputs import ObjectiveInputs
from gipo_mc.ops.layers.causal_attention import causal_attention
from gipo_mc.ops.layers.rows import gated_silu, norm_of_sum
from gipo_mc.ops.native import describe_build
from gipo_mc.ops.paged_attention import paged_attention, rotate_and_append
from gipo_mc.ops.results import GroupObjective, GroupVariance, ShapedAdvantages, TokenObjective, TokenStatistics
from gipo_mc.ops.sampling import sample
from gipo_mc.ops.shape_and_gae import shape_and_gae
from gipo_mc.ops.token_objective import token_objective
from gipo_mc.ops.token_statistics import token_statistics

__all__ = [
    "GroupObjective",
    "GroupVariance",
    "KlEstimator",
    "ObjectiveInputs",
    "ShapedAdvantages",
    "SignalForm",
    "TokenObjective",
    "TokenStatistics",
    "causal_attention",
    "describe_build",
    "gated_silu",
    "group_objective",
    "group_variance",
    "norm_of_sum",
    "paged_attention",
    "rotate_and_append",
    "sample",
    "shape_and_gae",
    "token_objective",
    "token_statistics",
]
