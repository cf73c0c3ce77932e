"""Files of evaluations and of papers' tables that are wrong, for tests/bad_input/files.py."""

from __future__ import annotations

import json
import os
from pathlib import Path


def _response(number: int, **changed: object) -> dict[str, object]:
    return {"prompt": f"question {number}", "response": f"answer {number}", "tokens": 3} | changed


def write_bad_evaluations(folder: Path, nasty: str, deep: int) -> None:
    """Responses, judges, evaluations and plans, in `folder`. nasty: what no terminal should see; deep: brackets."""
    rows: dict[str, list[dict[str, object]]] = {
        "ours": [_response(n) for n in range(4)],
        "theirs": [_response(n, response=f"other {n}") for n in range(4)],
        "fewer": [_response(n) for n in range(3)],
        "others": [_response(n + 9) for n in range(4)],
        "doubled": [_response(n // 2) for n in range(4)],
        "no_tokens": [{"prompt": "a", "response": "b"}],
        "text_tokens": [_response(0, tokens="3")],
        "huge_tokens": [_response(n, tokens=10**400) for n in range(4)],
        "huge_group": [_response(n, group=10**30) for n in range(4)],
        "empty_prompt": [_response(0, prompt=" ")],
        "role": [_response(0, messages=[{"role": "root", "content": "x"}])],
        "nasty": [{nasty: 1}],
    }
    path = folder / "responses"
    path.mkdir()
    for name, lines in rows.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, text in {"cut": '{"prompt": "a", "resp', "deep": "[" * deep, "empty": ""}.items():
        (path / f"{name}.jsonl").write_text(text)
    (path / "latin.jsonl").write_bytes(b"caf\xe9")
    _judges(folder)
    _plans(folder)
    good = {
        "pair": "0" * 16, "row": "", "conversation": "c", "domain": "", "group": None, "opponent": "sft", "prompt": "p",
        "ours": "a", "theirs": "b", "ours_tokens": 1, "theirs_tokens": 1, "ours_truncated": False,
        "theirs_truncated": False, "ours_model": "", "theirs_model": "",
    }  # fmt: skip
    pair = json.dumps(good) + "\n"
    folders: dict[str, dict[str, str]] = {
        "unjudged": {"pairs.jsonl": pair},
        "pairs_cut": {"pairs.jsonl": pair[:-9]},
        "pairs_list": {"pairs.jsonl": "[]\n"},
        "pairs_types": {"pairs.jsonl": json.dumps(good | {"ours": 3}) + "\n"},
        "pairs_huge": {"pairs.jsonl": json.dumps(good | {"ours_tokens": 10**400}) + "\n"},
        "no_pairs": {"pairs.jsonl": ""},
        "verdicts": {"pairs.jsonl": pair, "verdicts.jsonl": '{"key": 1}\n'},
        "verdicts_deep": {"pairs.jsonl": pair, "verdicts.jsonl": "[" * deep + "\n"},
        "judges": {"pairs.jsonl": pair, "judges.json": "[" * deep},
        "judges_list": {"pairs.jsonl": pair, "judges.json": "[]"},
        "votes": {"pairs.jsonl": pair, "votes.jsonl": '{"voter": 1}\n'},
        "table": {"pairs.jsonl": pair, "table.json": "{"},
        "table_deep": {"pairs.jsonl": pair, "table.json": "[" * deep},
        "table_version": {"pairs.jsonl": pair, "table.json": '{"version": 99}'},
    }
    for name, files in folders.items():
        (folder / "evaluations" / name).mkdir(parents=True)
        for file, text in files.items():
            (folder / "evaluations" / name / file).write_text(text)
    (folder / "evaluations" / "fifo").mkdir()
    os.mkfifo(folder / "evaluations" / "fifo" / "pairs.jsonl")
    (folder / "page.html").write_text("<!doctype html><!-- gipo_mc votes --><p>no page</p>")


def _judges(folder: Path) -> None:
    address = "base_url: 'http://127.0.0.1:9/v1'\nmodel: m\n"
    texts: dict[str, str] = {
        "rule": "kind: python\nfunction: gipo_mc.evaluation.judges.rules:longer\n",
        "no_kind": "model: m\n",
        "other_kind": "kind: oracle\n",
        "list_kind": "kind: [openai]\n",
        "typo": f"kind: openai\n{address}temprature: 0\n",
        "text": f"kind: openai\n{address}workers: many\n",
        "no_address": "kind: openai\nmodel: m\n",
        "no_scheme": "kind: openai\nbase_url: localhost\nmodel: m\n",
        "bad_port": "kind: openai\nbase_url: 'http://h:99999/v1'\nmodel: m\n",
        "bracket": "kind: openai\nbase_url: 'http://[::1/v1'\nmodel: m\n",
        "password": "kind: openai\nbase_url: 'http://me:secret@h/v1'\nmodel: m\n",
        "no_prompt": f"kind: openai\n{address}prompt: nowhere\n",
        "prompt_list": f"kind: openai\n{address}prompt: {folder}/list.yaml\n",
        "prompt_slots": f"kind: openai\n{address}prompt: {folder}/judges/slots.yaml\n",
        "slots": "user: hello\nverdict: x\nchoices: {A: first, B: second}\n",
        "no_key": f"kind: openai\n{address}key_variable: GIPO_MC_NOT_SET\n",
        "no_module": "kind: python\nfunction: no.such.module:f\n",
        "no_function": "kind: python\nfunction: gipo_mc.evaluation.judges.rules:f\n",
        "not_callable": "kind: python\nfunction: gipo_mc.evaluation.judges.rules:annotations\n",
        "dots": "kind: python\nfunction: '..:f'\n",
        "no_model": f"kind: reward\nmodel: {folder}/none\n",
        "file_model": f"kind: reward\nmodel: {folder}/list.yaml\n",
        "policy": f"kind: reward\nmodel: {folder}/policy\ndevice: cpu\n",
        "people": "kind: python\nname: people\nfunction: gipo_mc.evaluation.judges.rules:longer\n",
    }
    (folder / "judges").mkdir()
    for name, text in texts.items():
        (folder / "judges" / f"{name}.yaml").write_text(text)


def _plans(folder: Path) -> None:
    """Plans of a paper's table."""
    head = f"folder: {folder}/paper\ntasks:\n  hh:\n"
    sft = "    runs:\n      sft: {command: train_sft, config: ../good.yaml}\n"
    texts: dict[str, str] = {
        "no_tasks": "folder: x\n",
        "typo": f"{head}{sft}    evalutions: {{}}\n",
        "command": f"{head}    runs:\n      sft: {{command: train_sftt, config: a.yaml}}\n",
        "order": f"{head}    runs:\n      dpo: {{command: train_dpo, config: a.yaml}}\n",
        "absent": f"{head}    runs:\n      sft: {{command: train_sft, config: none.yaml}}\n",
        "option": f"{head}    runs:\n      sft: {{command: train_sft, config: ../good.yaml, set: [run.sed=1]}}\n",
        "judged": f"{head}{sft}    evaluations:\n      a: {{prompts: {{x: y}}, judges: [j.yaml]}}\n",
        "label": f"{head}    runs:\n      '../sft': {{command: train_sft, config: ../good.yaml}}\n",
        "whole": f"{head}{sft}",
    }
    (folder / "good.yaml").write_text("data: {demonstrations: [x.jsonl]}\n")
    (folder / "plans").mkdir()
    for name, text in texts.items():
        (folder / "plans" / f"{name}.yaml").write_text(text)
