"""scripts/convert_checkpoint.py on forked ranks: there and back over four ranks, the proof, and its exit codes."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from gipo_mc.data.synthetic import builtin_tokenizer
from gipo_mc.tools.verbs.convert import main
from tests.models.tiny import VARIANTS, let_this_rank_write, save_lm
from tests.ranks import run_ranks


@dataclass(frozen=True)
class Result:
    """What a command answered: exit codes of all ranks, and what rank 0 printed."""

    codes: list[int]
    out: str
    err: str


def run_main(rank: int, arguments: list[str]) -> tuple[int, str, str]:
    let_this_rank_write()
    out, err = io.StringIO(), io.StringIO()
    os.environ["COLUMNS"] = "200"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def convert(*arguments: object, ranks: int = 1) -> Result:
    results = run_ranks(run_main, ranks, [*map(str, arguments), "--device", "cpu"])
    return Result([code for code, _, _ in results], results[0][1], results[0][2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf")
    save_lm(path, dtype=torch.bfloat16, **VARIANTS["llama3"])
    builtin_tokenizer().save_pretrained(path)
    return path


def test_four_ranks_there_and_one_rank_back_is_bit_identical(folder: Path, tmp_path: Path) -> None:
    there = convert("--from-hf", folder, tmp_path / "run", "--tensor", 2, "--pipeline", 2, ranks=4)
    assert there.codes == [0] * 4, there.err
    back = convert("--to-hf", tmp_path / "run", tmp_path / "back")
    assert back.codes == [0], back.err
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype is torch.bfloat16 and torch.equal(tensor, after[name]), name
    LlamaForCausalLM.from_pretrained(tmp_path / "back")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "back")) == len(builtin_tokenizer())
    again = convert("--to-hf", tmp_path / "back", tmp_path / "again")
    assert again.codes == [2] and "already" in again.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "run"], "and nothing half written"


def test_neither_direction_writes_over_anything_unless_asked(folder: Path, tmp_path: Path) -> None:
    run, back = tmp_path / "run", tmp_path / "back"
    assert convert("--from-hf", folder, run).codes == [0]
    back.mkdir()
    for name in ("config.json", "model-00001-of-00002.safetensors", "adapter_model.safetensors"):
        (back / name).write_text("precious")
    for arguments, out in ((("--from-hf", folder, run), run), (("--to-hf", run, back), back)):
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        refused = convert(*arguments)
        assert refused.codes == [2] and "is not empty" in refused.err and "Nothing was changed" in refused.err
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        replaced = convert(*arguments, "--overwrite")
        assert replaced.codes == [0], replaced.err
    assert not (back / "adapter_model.safetensors").exists()
    assert convert("--check", back).codes == [0]
    (back / "notes.txt").write_text("precious")
    refused = convert("--to-hf", run, back, "--overwrite")
    assert refused.codes == [2] and "notes.txt is none of the files" in refused.err


def test_the_proof_prints_a_table_and_fails_with_4(folder: Path, tmp_path: Path) -> None:
    good = convert("--check", folder, "--tensor", 2, ranks=2)
    assert good.codes == [0, 0], good.err
    assert good.out.count(" ok ") == 4 and "tensor 2" in good.out and "FAILED" not in good.out
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    bad = convert("--check", damaged)
    assert bad.codes == [4] and "FAILED" in bad.out and "logits" in bad.err


def test_wrong_arguments_are_one_sentence_and_2(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for arguments, said in (
        (("--check", folder, "--tensor", 2), "does not divide the 1 ranks"),
        (("--check", tmp_path / "nowhere"), "there is no such folder"),
        (("--to-hf", tmp_path / "nowhere", tmp_path / "out"), "there is no such folder"),
        (("--from-hf", tmp_path / "adapter", tmp_path / "out"), "holds an adapter"),
    ):
        result = convert(*arguments)
        assert result.codes == [2] and said in result.err
