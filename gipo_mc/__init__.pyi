# The types of what gipo_mc/__init__.py imports late. tests/api/test_public_names.py compares the two.
from gipo_mc import errors as errors
from gipo_mc.algorithms.kl import kl_weights as kl_weights
from gipo_mc.api.policy import Generation as Generation
from gipo_mc.api.policy import Policy as Policy
from gipo_mc.api.policy import load_policy as load_policy
from gipo_mc.api.reward_model import RewardModel as RewardModel
from gipo_mc.api.reward_model import load_reward as load_reward
from gipo_mc.api.runs import Run as Run
from gipo_mc.api.runs import read_run as read_run
from gipo_mc.api.training import train as train
from gipo_mc.api.training import train_dpo as train_dpo
from gipo_mc.api.training import train_reward as train_reward
from gipo_mc.api.training import train_sft as train_sft
from gipo_mc.errors import GipoError as GipoError
from gipo_mc.ops.group_objective import group_objective as group_objective
from gipo_mc.ops.group_objective import group_variance as group_variance
from gipo_mc.ops.results import GroupObjective as GroupObjective
from gipo_mc.ops.results import GroupVariance as GroupVariance
from gipo_mc.types import Message as Message
from gipo_mc.types import Sample as Sample

__version__: str
