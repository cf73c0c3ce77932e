"""Where a model comes from: a Hugging Face folder, a hub name, or a checkpoint of one of our runs.

    runs/sft                              newest verified checkpoint of a run
    runs/sft/checkpoints/step_00000200    that checkpoint
    models/llama-2-7b                     Hugging Face folder (config.json, *.safetensors, tokenizer)
    meta-llama/Llama-2-7b-hf              hub name, downloaded by huggingface_hub

In a run's checkpoint the role is "policy" (RL), "critic" (RL) or "model" (SFT, reward model).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from gipo_mc.config import AlgorithmConfig, load_config
from gipo_mc.errors import CheckpointError, ConfigError, did_you_mean_path
from gipo_mc.models.build import build_model
from gipo_mc.models.execution import PLAIN, Execution
from gipo_mc.models.families import family_of, read_shape
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import HeadKind, StageModel
from gipo_mc.models.weights.hf_load import MERGE, SafetensorsFolder, load_hf_weights
from gipo_mc.models.weights.table import SCORE
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.layout import Layout
from gipo_mc.run import checkpoint, manifest
from gipo_mc.run.arguments import say_warning
from gipo_mc.run.hashes import content_of
from gipo_mc.run.terminal.voice import is_first_rank

#: To a user who set one option more and meets an empty one.
NO_BUILTIN = "Only a command that names neither a model nor data runs the built-in task."
#: Options that name models that only score.
FROZEN = ("model.reference", "model.reward", "eval.reward", "reward.also", "reward.models", "dpo.group_model")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.jinja"]


@dataclass(frozen=True)
class ModelSource:
    """A resolved source.

    kind: "hf" (folder with config.json and safetensors) or "run" (a verified checkpoint).
    folder: holds config.json and, where there is one, the tokenizer.
    checkpoint, role: of a run's checkpoint; empty for "hf".
    """

    name: str
    kind: Literal["hf", "run"]
    folder: Path
    checkpoint: Path = Path()
    role: str = ""

    @cached_property
    def shape(self) -> ModelShape:
        """Sizes of the model, from its config.json, read once."""
        return read_shape(self.folder)

    @property
    def saved_config(self) -> Path | None:
        """config.yaml of the run; None where the source is no run, or the file is not there any more."""
        saved = self.checkpoint.parent.parent / "config.yaml"
        return saved if self.kind == "run" and saved.is_file() else None

    def shape_for(self, head: HeadKind) -> ModelShape:
        """The shape of the model with this head. A reward head that the source does not have is read at the last token,
        and so is one that an earlier version of this package trained (its config.json named a language model): such a
        shape has no pad id."""
        shape = self.shape
        if head == "reward" and not self._has_reward_head():
            return replace(shape, pad_token_id=None)
        return shape

    def _has_reward_head(self) -> bool:
        if self.kind == "hf":
            return SCORE in SafetensorsFolder(self.folder).shapes
        saved = checkpoint.load_state(self.checkpoint)["heads"][self.role]
        named = json.loads((self.folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
        return saved == "reward" and family_of(self.shape).causal_lm not in named

    def fingerprint(self) -> str:
        """A hash that differs where the weights do: of the manifest's sums, or of each safetensors file's content.
        Reads files that it has not read before: call it on one rank."""
        if self.kind == "run":
            return hashlib.sha256((self.checkpoint / manifest.FILE).read_bytes()).hexdigest()[:16]
        return content_of(self.folder.glob("*.safetensors"))

    def earlier_fingerprint(self) -> str:
        """What checkpoints stored before `fingerprint` read whole files: of name, size, first and last mebibyte."""
        if self.kind == "run":
            return self.fingerprint()
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name}/{size}".encode())
            with path.open("rb") as stream:
                digest.update(stream.read(1 << 20))
                stream.seek(max(0, size - (1 << 20)))
                digest.update(stream.read())
        return digest.hexdigest()[:16]


def classifier_of(source: ModelSource) -> tuple[ModelSource, AlgorithmConfig] | None:
    """The group classifier in the same checkpoint of a run, with the settings that it was trained with; None where the
    source is no run, or one that infers no groups. Called on every rank. Raises ConfigError where the run's config.yaml
    cannot be read."""
    saved = source.saved_config
    if saved is None:
        return None
    settings: AlgorithmConfig = on_main(lambda: load_config(str(saved), []).algorithm)
    role = "classifier" if settings.group_trunk == "own" else "critic"
    found = replace(source, role=role, folder=source.checkpoint / role)
    return (found, settings) if settings.inferred and found.folder.is_dir() else None


def _say(text: str) -> None:
    if is_first_rank():
        say_warning(text)


def resolve(name: str, key: str, *, together: bool = False, warn: Callable[[str], None] = _say) -> ModelSource:
    """Find what `name`, the value of configuration key `key`, stands for.

    Called on one rank, which may download; together: on every rank, which share the reading of a checkpoint.
    warn: told of each newer checkpoint of a run that is damaged and was passed over.
    Raises ConfigError if there is no such thing, CheckpointError if a named checkpoint is damaged or a run has none
    that is intact.
    """
    one: Callable[[Callable[[], ModelSource]], ModelSource] = on_main if together else lambda work: work()
    found = one(lambda: _find(name, key))
    if found.kind == "hf":
        return found
    if found.checkpoint != Path():
        checkpoint.verify(found.checkpoint, together=together)
        return one(lambda: _of_checkpoint(name, found.checkpoint))
    newest, reasons = checkpoint.latest(found.folder, together=together)
    if newest is None:
        why = "\n".join(f"  - {reason}" for reason in reasons) or "  - it has no checkpoint yet: train it first"
        raise CheckpointError(f"{key}={name} is a run without a usable checkpoint:\n{why}")
    for reason in reasons:
        warn(f"{key}={name}: {newest.name} is used, a newer checkpoint was passed over: {reason}")
    return one(lambda: _of_checkpoint(name, newest))


def _find(name: str, key: str) -> ModelSource:
    """What kind of source it is; nothing of a run is verified yet: `checkpoint`, or `folder` with all of them."""
    if not name:
        raise ConfigError(f"{key} is empty: give a run, a Hugging Face folder or a hub name. {NO_BUILTIN}")
    path = Path(os.path.expanduser(name))
    if (path / manifest.FILE).is_file():
        return ModelSource(name, "run", path, path)
    if (path / "checkpoints").is_dir():
        return ModelSource(name, "run", path / "checkpoints")
    if (path / "config.json").is_file():
        return ModelSource(name, "hf", path)
    if (path / "adapter_config.json").is_file():
        raise ConfigError(f"{key}={name} holds an adapter (adapter_config.json) and no model. {MERGE}")
    if path.exists():
        raise ConfigError(
            f"{key}={name} is neither a Hugging Face folder (no config.json) nor a run (no checkpoints/) nor a "
            "checkpoint (no MANIFEST.json)."
        )
    if not on_hub(name):
        raise no_folder(name, key)
    return ModelSource(name, "hf", _download(name, key))


def on_hub(name: str) -> bool:
    """Would `resolve` ask the hub for it?"""
    here = Path(os.path.expanduser(name)).exists() or name.startswith((".", "/", "~"))
    return not here and name.count("/") == 1


def no_folder(name: str, key: str) -> ConfigError:
    """Option `key` names nothing that is on this machine."""
    return ConfigError(f"{key}={name}: there is no such folder{did_you_mean_path(name) or '.'}")


def check_fits(source: ModelSource, layout: Layout, *, sequence_length: int = 0) -> None:
    """`ModelShape.check`; of frozen models in a layout of their own the error names the options that they have."""
    try:
        source.shape.check(*layout.model_sizes, sequence_length=sequence_length)
    except ConfigError as error:
        if layout.groups is None:
            raise
        raise ConfigError(
            f"{source.name} on parallel.frozen_tensor x parallel.frozen_pipeline ranks, 0 meaning as the others: "
            f"{error}"
        ) from error


def load_model(
    source: ModelSource,
    layout: Layout,
    *,
    head: HeadKind,
    dtype: torch.dtype,
    trainable: bool,
    seed: int,
    groups: int = 0,
    group_head: Literal["mlp", "linear"] = "mlp",
    empty: bool = False,
    execution: Execution = PLAIN,
) -> StageModel:
    """Build this rank's stage and fill it from the source; heads that the source does not have start fresh.

    A critic takes the reward head of a reward model as its value head. `empty`: do not read the source, the caller
    fills the model. Raises CheckpointError where tensors are missing or of another shape.
    """
    check_fits(source, layout)
    with layout.active():
        model = build_model(
            source.shape_for(head),
            layout,
            head=head,
            groups=groups,
            group_head=group_head,
            dtype=dtype,
            trainable=trainable,
            seed=seed,
            initialize=False,
            execution=execution,
        )
        if not empty and source.kind == "hf":
            load_hf_weights(model, source.folder)
        elif not empty:
            _load_run_weights(model, source, fresh_head=trainable)
        return model


def read_as_saved(model: StageModel, path: Path, role: str) -> None:
    """A run goes on reading rewards where it began to, in this checkpoint's version of the package."""
    if ModelSource(role, "run", path / role, path, role).shape_for(model.head).pad_token_id is None:
        model.shape = replace(model.shape, pad_token_id=None)


def _load_run_weights(model: StageModel, source: ModelSource, *, fresh_head: bool) -> None:
    prefix = f"{source.role}.model."
    sharded = model.sharded_state_dict(prefix=prefix)
    saved = checkpoint.load_state(source.checkpoint)["heads"][source.role]
    if model.head == "lm" and saved != "lm":
        raise CheckpointError(
            f"{source.name} holds a {saved!r} model, which cannot generate: give a policy or SFT run."
        )
    wanted: dict[str, Any] = {}
    for name, tensor in sharded.items():
        local = tensor.key.removeprefix(prefix)
        if local.startswith("value_head.") and saved == "reward":
            tensor.key = tensor.key.replace("value_head.", "reward_head.")
        elif local.startswith(("value_head.", "reward_head.")) and saved not in _HOLDING[local.split("_")[0]]:
            if not fresh_head:
                raise CheckpointError(
                    f"{source.name} holds a {saved!r} model, which has no reward head: give a reward model."
                )
            continue
        elif local.startswith("group_head.") and fresh_head:
            continue  # a new run infers its own groups
        wanted[name] = tensor
    loaded = checkpoint.load_shards(source.checkpoint, wanted)
    weights = {name.removeprefix(prefix): value for name, value in loaded.items() if name.startswith(prefix)}
    model.load_state_dict(weights, strict=False)


#: Head -> kinds of saved models that have it.
_HOLDING = {"value": ("value", "critic"), "reward": ("reward",)}


def _of_checkpoint(name: str, path: Path) -> ModelSource:
    role = next((role for role in ("policy", "model") if (path / role / "config.json").is_file()), None)
    if role is None:
        raise CheckpointError(f"{path} holds neither a policy nor a model: it is not a checkpoint of a trainer.")
    return ModelSource(name, "run", path / role, path, role)


def _download(name: str, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    cause: Exception
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except LocalEntryNotFoundError as error:
        why, cause = "the hub is out of reach (or HF_HUB_OFFLINE is set), with nothing of it downloaded before", error
    except RepositoryNotFoundError as error:
        why, cause = "the hub has none of that name, or only for those who are logged in", error
    except HfHubHTTPError as error:
        why, cause = f"the hub refuses it (HTTP {error.response.status_code})", error
    except (OSError, ValueError) as error:
        why, cause = f"the hub could not provide it ({str(error).splitlines()[0]:.200})", error
    raise ConfigError(
        f"{key}={name}: there is no such folder, and {why}{did_you_mean_path(name) or '.'} Train it or make it first "
        "(gipo-mc new-model makes a tiny one), or download it and give its folder."
    ) from cause
