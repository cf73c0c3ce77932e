"""Sizes of the models that a configuration names, whether or not their files are here, and without torch.

A name is looked for as a Hugging Face folder, as a run with a checkpoint, as the run of another configuration beside
the given one (whose own start is then looked for), and among the published models below.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gipo_mc.config import load_config
from gipo_mc.errors import ConfigError
from gipo_mc.models.shape import ModelShape

_Sizes = tuple[int, int, int, int, int, int, int, int]
#: Published models by the end of their name on the hub: vocabulary, hidden, feed-forward, layers, heads, key-value
#: heads, width of a head, positions; family; tied embeddings. From the config.json of each.
KNOWN: dict[str, tuple[_Sizes, str, bool]] = {
    "llama-2-7b": ((32000, 4096, 11008, 32, 32, 32, 128, 4096), "llama", False),
    "llama-2-13b": ((32000, 5120, 13824, 40, 40, 40, 128, 4096), "llama", False),
    "llama-2-70b": ((32000, 8192, 28672, 80, 64, 8, 128, 4096), "llama", False),
    "llama-3-8b": ((128256, 4096, 14336, 32, 32, 8, 128, 8192), "llama", False),
    "llama-3-70b": ((128256, 8192, 28672, 80, 64, 8, 128, 8192), "llama", False),
    "llama-3.1-8b": ((128256, 4096, 14336, 32, 32, 8, 128, 131072), "llama", False),
    "llama-3.1-70b": ((128256, 8192, 28672, 80, 64, 8, 128, 131072), "llama", False),
    "llama-3.1-405b": ((128256, 16384, 53248, 126, 128, 8, 128, 131072), "llama", False),
    "llama-3.3-70b": ((128256, 8192, 28672, 80, 64, 8, 128, 131072), "llama", False),
    "llama-3.2-1b": ((128256, 2048, 8192, 16, 32, 8, 64, 131072), "llama", True),
    "llama-3.2-3b": ((128256, 3072, 8192, 28, 24, 8, 128, 131072), "llama", True),
    "deepseek-llm-7b": ((102400, 4096, 11008, 30, 32, 32, 128, 4096), "llama", False),
    "mistral-7b-v0.3": ((32768, 4096, 14336, 32, 32, 8, 128, 32768), "mistral", False),
    "qwen2.5-0.5b": ((151936, 896, 4864, 24, 14, 2, 64, 32768), "qwen2", True),
    "qwen2.5-7b": ((152064, 3584, 18944, 28, 28, 4, 128, 131072), "qwen2", False),
    "qwen3-0.6b": ((151936, 1024, 3072, 28, 16, 8, 128, 40960), "qwen3", True),
    "qwen3-8b": ((151936, 4096, 12288, 36, 32, 8, 128, 40960), "qwen3", False),
    "qwen3-32b": ((151936, 5120, 25600, 64, 64, 8, 128, 40960), "qwen3", False),
    # What this package's own commands make: `gipo-mc new-model --vocab 1024 --hidden 64`, and the built-in task.
    "hh_tiny": ((1024, 64, 176, 4, 4, 2, 16, 512), "llama", False),
    "builtin_model": ((22, 64, 176, 4, 4, 2, 16, 32), "llama", False),
}
_STEP = re.compile(r"step_\d+")


def shape_of(name: str, key: str, config_file: str | None = None) -> ModelShape:
    """The shape of the model that option `key` names. Raises ConfigError where nothing is known of it."""
    return _shape_of(name, key, Path(config_file).parent if config_file else None, ())


def _shape_of(name: str, key: str, folder: Path | None, seen: tuple[str, ...]) -> ModelShape:
    path = Path(name)
    found = path if path.is_file() else _config_in(path)
    if found is not None:
        return _read(found)
    if known := known_shape(path.name):
        return known
    start = _start_of_run(path.name, folder) if folder and name not in seen else ""
    if start:
        return _shape_of(start, key, folder, (*seen, name))
    raise ConfigError(
        f"{key}={name} is no folder with config.json, no run with a checkpoint or with a configuration beside this "
        f"one, and no model that the plan knows: say with --shape what it is, a config.json or one of "
        f"{', '.join(KNOWN)}."
    )


def local_shape(name: str) -> ModelShape | None:
    """The shape of a model or of a run with a checkpoint, in this folder; None where there is none. Raises ConfigError
    where its config.json is not of a model that can be trained here."""
    found = _config_in(Path(name))
    return _read(found) if found else None


def known_shape(name: str) -> ModelShape | None:
    """The published model of this name, chat versions included, in capitals or not; None for others."""
    if name in ("builtin_sft", "builtin_reward", "builtin_dpo", "builtin_gi_ppo"):
        name = "builtin_model"  # what the commands without arguments train
    short = name.lower().removeprefix("meta-").removesuffix("-hf")
    for end in ("-instruct", "-chat", "-base"):
        short = short.removesuffix(end)
    short = re.sub(r"^(llama)(\d)", r"\1-\2", short)  # llama3-8b
    if short not in KNOWN:
        return None
    sizes, family, tied = KNOWN[short]
    return ModelShape(*sizes, family=family, tied=tied)


def _config_in(folder: Path) -> Path | None:
    """config.json of a model's folder, of a checkpoint, or of the newest checkpoint of a run."""
    steps = sorted(p for p in folder.glob("checkpoints/step_*") if _STEP.fullmatch(p.name)) or [folder]
    for place in (folder, *(steps[-1] / role for role in ("policy", "model"))):
        if (place / "config.json").is_file():
            return place / "config.json"
    return None


def _start_of_run(name: str, folder: Path) -> str:
    """What the run of this name starts from, by its configuration in `folder`; "" where there is none."""
    for path in sorted(filter(Path.is_file, folder.glob("*.yaml"))):
        # Whatever else lies in the folder: it is looked through, not read as a configuration.
        if re.search(rf"name:\s*[\"']?{re.escape(name)}\b", path.read_text(encoding="utf-8", errors="replace")):
            config = load_config(str(path), [])
            if config.run.name == name:
                return config.model.policy
    return ""


def _read(path: Path) -> ModelShape:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} does not describe a model: a config.json is an object in braces.")
    family = raw.get("model_type", "")
    if not isinstance(family, str) or family not in FAMILIES:
        what = f"is of the family {family}" if family else "has no model_type"
        raise ConfigError(f"{path} {what}: the families that can be planned and trained are {', '.join(FAMILIES)}.")
    if missing := [key for key in _NEEDED if key not in raw]:
        raise ConfigError(f"{path} lacks {', '.join(missing)}: the sizes of a model are read from there.")
    heads, hidden = raw["num_attention_heads"], raw["hidden_size"]
    if type(heads) is not int or heads < 1 or type(hidden) is not int:
        raise ConfigError(f"{path} has num_attention_heads={heads!r} and hidden_size={hidden!r}: not two numbers.")
    shape = ModelShape(
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        intermediate_size=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or hidden // heads,
        max_positions=raw.get("max_position_embeddings", 2048),
        tied=bool(raw.get("tie_word_embeddings", False)),
        family=family,
    )
    if wrong := shape.absurd():
        raise ConfigError(f"{path} describes no model: {'; '.join(wrong)}.")
    return shape


#: Keys of a config.json without which a model has no size.
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
#: Family -> (bias of the query, key and value projection, norm of each query and key head).
FAMILIES = {
    "llama": (False, False), "mistral": (False, False), "qwen2": (True, False), "qwen3": (False, True)
}  # fmt: skip
