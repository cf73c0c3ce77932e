"""What a configuration takes from the environment is in no file and in no line that a run leaves."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.config import Config, as_yaml, hide, load_config, values
from gipo_mc.errors import ConfigError
from gipo_mc.rl import gi_ppo
from gipo_mc.run.command import run_command
from tests.ranks import run_ranks
from tests.runs import save_models

#: With characters that JSON, YAML, HTML and repr write in other ways.
MARKER = 'mk-"qz7wk4vt9x&\\a1-ü'


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIPO_TEST_TOKEN", MARKER)
    monkeypatch.setenv("GIPO_TEST_SEED", "7")
    monkeypatch.setattr("gipo_mc.config.environment._hidden", {})


_SPELLINGS = (b"qz7wk4vt9x", MARKER.encode())


def _train(rank: int, folder: Path, words: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run_command("test", gi_ppo.train, argv=words)
    return code, said.getvalue()


def _words(folder: Path, **more: str) -> list[str]:
    token = "${oc.env:GIPO_TEST_TOKEN}"
    options: dict[str, Any] = {
        "run.dir": folder,
        "run.name": "run",
        "run.iterations": 1,
        "device": "cpu",
        "model.policy": f"'{folder}/{token}/policy'",
        "model.reward": f"'{folder}/{token}/reward'",
        "data.prompts": f"['{folder}/{token}/rows.jsonl']",
        "data.domains": f"['{token}']",
        "data.prompt_length": 8,
        "rollout.max_new_tokens": 4,
        "rollout.stop": f"['{token}']",
        "rollout.batch_size": 8,
        "algorithm.mini_batch_size": 8,
        "eval.prompts": 0,
    } | {key.replace("__", "."): value for key, value in more.items()}
    return [f"{key}={value}" for key, value in options.items()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_models(tmp_path / MARKER)
    # A row that holds it is shown in samples.jsonl; the domain's name is part of metrics' names.
    row = json.dumps({"prompt": "s0 s1", "chosen": MARKER, "rejected": "s0"})
    (tmp_path / MARKER / "rows.jsonl").write_text(f"{row}\n" * 8)
    return tmp_path


def _holding(run: Path) -> list[str]:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 10
    found = []
    for path in files:
        data = path.read_bytes() + path.name.encode()
        found += [f"{path}: {data[max(0, data.find(s) - 80) :][:160]!r}" for s in _SPELLINGS if s in data]
    return found


def test_a_run_leaves_no_secret_and_continues(folder: Path) -> None:
    ((code, said),) = run_ranks(_train, 1, folder, _words(folder))
    assert code == 0, said
    assert "qz7wk4vt9x" not in said, said
    assert _holding(folder / "run") == []
    assert "${oc.env:GIPO_TEST_TOKEN}" in (folder / "run" / "config.yaml").read_text()
    ((code, said),) = run_ranks(_train, 1, folder, _words(folder, run__iterations="2"))
    assert code == 0 and "qz7wk4vt9x" not in said, said
    assert _holding(folder / "run") == []


def test_a_fixed_option_whose_secret_changed_is_refused_without_showing_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((code, said),) = run_ranks(_train, 1, folder, _words(folder))
    assert code == 0, said
    shutil.copytree(folder / MARKER, folder / "other-secret")
    monkeypatch.setenv("GIPO_TEST_TOKEN", "other-secret")
    ((code, said),) = run_ranks(_train, 1, folder, _words(folder, run__iterations="2"))
    assert code == 2 and "rollout.stop was" in said and "other-secret" not in said and "qz7wk4vt9x" not in said, said


def test_an_error_that_quotes_a_secret_shows_the_reference(folder: Path) -> None:
    (folder / "run").mkdir()  # where a start that is refused leaves its status
    words = _words(folder, model__policy="'/none/${oc.env:GIPO_TEST_TOKEN}/x'")
    ((code, said),) = run_ranks(_train, 1, folder, words)
    assert code == 2 and "/none/${oc.env:GIPO_TEST_TOKEN}/x" in said and "qz7wk4vt9x" not in said, said
    assert "qz7wk4vt9x" not in (folder / "run" / "run_status.json").read_text()


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:GIPO_TEST_TOKEN}",
        "${oc.decode:'[${oc.env:GIPO_TEST_TOKEN}'}",
        "${${oc.env:GIPO_TEST_TOKEN}}",
        "${oc.create:'${oc.env:GIPO_TEST_TOKEN}'}",
    ],
)
def test_a_configuration_that_is_refused_shows_no_secret(value: str) -> None:
    """Neither one of the wrong kind, nor one that cannot be resolved."""
    with pytest.raises(ConfigError) as error:
        load_config(None, [f"run.seed={value}"])
    assert "qz7wk4vt9x" not in hide(str(error.value))


def test_a_saved_configuration_reads_back_the_same(tmp_path: Path) -> None:
    words = ["run.seed=${oc.env:GIPO_TEST_SEED}", "policy.lr=${oc.decode:${oc.env:GIPO_TEST_SEED}}"]
    words += ["model.tokenizer=a/${oc.env:GIPO_TEST_TOKEN}", r"rollout.stop=['\${x}', '$']"]
    config = load_config(None, words)
    assert config.run.seed == 7 and config.policy.lr == 7.0 and config.model.tokenizer == f"a/{MARKER}"
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    text = (tmp_path / "config.yaml").read_text()
    assert "seed: ${oc.env:GIPO_TEST_SEED}" in text and "qz7wk4vt9x" not in text
    again = load_config(str(tmp_path / "config.yaml"), [])
    assert again.model_dump() == config.model_dump() and again.rollout.stop == ["${x}", "$"]
    # Numbers are compared as they are, texts by a hash.
    assert values(again)["run.seed"] == 7 and "qz7wk4vt9x" not in str(values(again))


def test_secrets_name_no_folder() -> None:
    with pytest.raises(ConfigError, match="GIPO_TEST_TOKEN looks like a secret"):
        load_config(None, ["run.name=a-${oc.env:GIPO_TEST_TOKEN}"])
    assert load_config(None, ["run.name=a-${oc.env:GIPO_TEST_SEED}"]).run.name == "a-7"


def test_a_password_in_a_url_is_refused_and_never_shown() -> None:
    with pytest.raises(ConfigError, match="holds a password in a URL") as error:
        load_config(None, ["data.prompts=['https://me:s3cret@host/rows.jsonl']"])
    assert "s3cret" not in str(error.value)
    assert hide("see https://me:s3cret@host/x") == "see https://me:***@host/x"


def test_text_without_the_environment_is_as_it_was() -> None:
    config = load_config(None, ["run.name=x"])
    assert values(config) == values(Config.model_validate(config.model_dump())) and hide("abc {") == "abc {"


@pytest.mark.parametrize("key", ["data.format", "run.iterations", "data.max_rows"])
@pytest.mark.parametrize("before", ["", "x" * 190])
def test_a_value_that_is_refused_is_not_shown(key: str, before: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the message cuts it short."""
    assert run_command("test", gi_ppo.train, argv=[f"{key}={before}${{oc.env:GIPO_TEST_TOKEN}}"]) == 2
    said = capsys.readouterr().err
    assert key in said and "mk-" not in said and "qz7" not in said
