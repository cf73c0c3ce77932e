"""Everything that is wrong with a configuration, a sentence each, with the nearest key or value that is right."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import ValidationError

from gipo_mc.config.environment import hide
from gipo_mc.config.names import name_problems
from gipo_mc.config.schema import Config, options
from gipo_mc.errors import nearest
from gipo_mc.presets import PRESETS

#: Keys that earlier versions had, and what took their place.
_MOVED = {"rollout.micro_batch_size": "rollout.slots"}
#: What other libraries call an option, whatever their section: by its names here, in the order of a suggestion.
_ELSEWHERE = {
    "policy.lr, critic.lr": "learning_rate actor_learning_rate",
    "critic.lr": "critic_learning_rate value_lr",
    "policy.warmup, critic.warmup": "warmup_steps num_warmup_steps warmup_ratio lr_warmup_steps",
    "policy.schedule, critic.schedule": "lr_scheduler lr_scheduler_type scheduler",
    "policy.clip_grad, critic.clip_grad": "max_grad_norm grad_clip gradient_clipping max_norm",
    "train.batch_size, rollout.batch_size": "batch_size train_batch_size global_batch_size rollout_batch_size",
    "parallel.micro_batch_size": "per_device_train_batch_size micro_train_batch_size gradient_accumulation_steps",
    "algorithm.mini_batch_size": "ppo_mini_batch_size minibatch_size num_mini_batches",
    "run.iterations": "max_steps total_steps train_steps num_train_epochs max_epochs num_epochs n_epochs epochs",
    "algorithm.epochs": "ppo_epochs num_ppo_epochs num_iterations",
    "data.sequence_length": "max_length max_seq_length max_seq_len seq_length cutoff_len model_max_length",
    "data.prompt_length": "max_prompt_length prompt_max_len max_prompt_len",
    "rollout.max_new_tokens": "max_completion_length max_response_length response_length generate_max_len max_tokens",
    "rollout.samples_per_prompt": "num_generations n_samples_per_prompt num_return_sequences group_size",
    "dpo.beta, algorithm.kl_coef": "beta",
    "algorithm.kl_coef": "kl_beta init_kl_coef kl_coeff kl_loss_coef kl_ctl",
    "algorithm.kl_target": "target_kl",
    "algorithm.clip": "cliprange clip_range clip_ratio clip_eps eps_clip epsilon",
    "algorithm.value_clip": "cliprange_value value_clip_range",
    "algorithm.lam": "gae_lambda lambda lambd",
    "dpo.loss": "loss_type dpo_loss",
    "model.policy": "model_name_or_path model_name pretrain model_path base_model",
    "model.reference": "ref_model reference_model ref_pretrain",
    "model.reward": "reward_model reward_pretrain reward_model_path reward_funcs",
    "data.prompts, data.preferences, data.demonstrations": "dataset dataset_name train_file train_files prompt_data",
    "data.evaluation": "eval_dataset val_files validation_file test_file",
    "parallel.tensor": "tensor_parallel_size tensor_model_parallel_size tp tp_size",
    "parallel.pipeline": "pipeline_parallel_size pipeline_model_parallel_size pp pp_size",
    "parallel.virtual_pipeline": "virtual_pipeline_model_parallel_size virtual_pipeline_size vpp vpp_size",
    "parallel.sequence": "sequence_parallel",
    "parallel.distributed_optimizer": "use_distributed_optimizer zero zero_stage fsdp deepspeed",
    "memory.recompute": "gradient_checkpointing activation_checkpointing recompute_granularity",
    "dtype": "bf16 fp16 torch_dtype precision_dtype",
    "run.dir": "output_dir save_path",
    "run.trackers": "report_to logger loggers",
    "checkpoint.every": "save_steps save_freq save_interval",
    "eval.every": "eval_steps test_freq eval_interval",
}
#: What other libraries have, and this one does not -> the names of their options, whatever their section.
_NOT_HERE = {
    "there is no context parallelism: parallel.sequence=true shares the activations of a long sequence among tensor "
    "ranks, and memory.recompute=full keeps few of them": "context context_parallel context_parallel_size "
    "context_parallelism cp cp_size ulysses_sequence_parallel_size ring_attn_size",
    "models are dense, so there are no experts to spread": "expert expert_parallel expert_parallel_size "
    "expert_model_parallel_size ep ep_size expert_tensor_parallel_size",
    "data-parallel ranks are those that parallel.tensor x parallel.pipeline leaves": "data_parallel_size dp dp_size",
    "whole models are trained, no adapters": "lora lora_rank lora_alpha lora_r lora_dropout use_lora use_peft",
}
_MISSING = {name: said for said, names in _NOT_HERE.items() for name in names.split()}
_ALIASES = {alias: tuple(keys.split(", ")) for keys, aliases in _ELSEWHERE.items() for alias in aliases.split()}


#: What pydantic finds wrong with a value -> what is said of it; names stand for what pydantic tells besides.
_WORDED = {
    "int_type int_parsing int_from_float": "it must be a whole number",
    "float_type float_parsing": "it must be a number",
    "bool_type bool_parsing": "it must be true or false",
    "string_type": "it must be a text",
    "list_type": "it must be a list, such as [a, b]",
    "dict_type": "it must be a mapping, such as {{key: value}}",
    "model_type": "it must be a section, with keys of its own",
    "literal_error": "it must be {expected}",
    "greater_than": "it must be more than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
    "finite_number": "it must be a finite number",
    "missing": "it is missing",
}
_SAID = {kind: said for kinds, said in _WORDED.items() for kind in kinds.split()}


def worded(detail: Any) -> str:
    """What is wrong with the value of a key, of one of the errors of a ValidationError."""
    said = _SAID.get(detail["type"])
    return said.format(**detail.get("ctx", {})) if said else str(detail["msg"])


def validated(raw: dict[str, Any]) -> tuple[Config | None, list[str]]:
    """The configuration, and everything that is wrong with it. Where there is something, it has the defaults in the
    place of what is wrong, or is None.

    Combinations of keys are looked at with these defaults, too, and left out where they name one of them.
    """
    config, lines, wrong = _tried(raw)
    if wrong:
        config, more, _ = _tried(_without(raw, wrong))
        keys = [".".join(map(str, where)) for where in wrong]
        lines += [line for line in more if not any(key in line for key in keys)]
    if config is not None:
        lines += name_problems(flat(config.model_dump()))
    return config, lines


def _tried(raw: dict[str, Any]) -> tuple[Config | None, list[str], list[tuple[Any, ...]]]:
    """The configuration, the problems, and the places of those that are of one key."""
    try:
        return Config.model_validate(raw), [], []
    except ValidationError as error:
        details = error.errors()
    lines = [line for detail in details for line in _lines(detail)]
    return None, lines, [detail["loc"] for detail in details if detail["loc"]]


def _without(raw: dict[str, Any], wrong: list[tuple[Any, ...]]) -> dict[str, Any]:
    """`raw` without the keys at these places; a list goes as a whole."""
    kept = copy.deepcopy(raw)
    for where in wrong:
        section: Any = kept
        names = [part for part in where if isinstance(part, str)]
        for name in names[:-1]:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(names[-1], None)
    return kept


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The values of sections by their keys ("algorithm.groups"); a mapping in a section is a value."""
    if not isinstance(tree, dict) or "." in prefix:
        return {prefix: tree}
    items = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()]
    return {key: value for item in items for key, value in item.items()}


def _lines(detail: Any) -> list[str]:
    where = detail["loc"]
    key = ".".join(str(part) for part in where)
    if detail["type"] == "extra_forbidden":
        return [f"{key}: there is no such key{nearest_key(key)}"]
    if detail["type"] == "value_error":
        meant = _nearest(detail["input"], list(PRESETS)) if key == "algorithm.name" else ""
        return [line + meant for line in str(detail["ctx"]["error"]).splitlines()]
    try:
        value = hide(repr(detail["input"]))  # before it is cut: a part of a secret would not be found
    except ValueError:  # Python writes no integer of more than 4,300 digits
        value = "a number of thousands of digits"
    meant = _nearest(detail["input"], _choices(where)) if detail["type"] == "literal_error" else ""
    return [f"{key}={value if len(value) <= 200 else f'{value[:200]}...'}: {worded(detail)}{meant}"]


def _choices(where: tuple[Any, ...]) -> list[str]:
    """What the option at this place may be, where it is one of several words."""
    field = options().get(".".join(part for part in where if isinstance(part, str)))
    kinds = [field.annotation, *get_args(field.annotation)] if field else []
    return [choice for kind in kinds for choice in get_args(kind) if isinstance(choice, str)]


def _nearest(value: Any, known: list[str]) -> str:
    close = nearest(str(value), known)
    return f"; did you mean {close[0]}?" if close else ""


def keys_called(name: str, known: Iterable[str]) -> list[str]:
    """Those of the known keys whose last part this is, or that other libraries call so; at most three."""
    name, known = name.replace("-", "_"), list(known)
    own = [key for key in known if key.rpartition(".")[2] == name]
    return (own or [key for key in _ALIASES.get(name, ()) if key in known])[:3]


def nearest_key(key: str) -> str:
    """What was perhaps meant by a key that there is not, as the end of a sentence."""
    if key in _MOVED:
        return f" any more; it is {_MOVED[key]} now"
    section, _, name = key.rpartition(".")
    if (meant := _ALIASES.get(name)) and key not in options():
        meant = tuple(k for k in meant if k.rpartition(".")[0] == section) or meant
        return f"; did you mean {' or '.join(meant)}?"
    around = section + "." if section else ""
    names = list(dict.fromkeys(k.removeprefix(around).split(".")[0] for k in options() if k.startswith(around)))
    if said := _MISSING.get(name):
        return f"; {said}"
    if close := nearest(name, names):
        return f"; did you mean {around}{close[0]}?"
    elsewhere = [k for k in options() if k.rpartition(".")[2] == name][:3]
    if elsewhere := elsewhere or nearest(key, options()):
        return f"; did you mean {' or '.join(elsewhere)}?"
    return f"; known here: {', '.join(names)}" if names else ""
