"""Wrong command lines of evaluate, paper and plan, for tests/bad_input/test_bad_input.py."""

from __future__ import annotations

from tests.bad_input.files import NASTY
from tests.bad_input.lines import BAD_CONFIGS, LONG, Bad, each

_THEIRS = "{}/responses/theirs.jsonl"
_JUDGE = "judge --ours {}/responses/ours.jsonl --out {}/e"
_PAIRED = f"{_JUDGE} --against sft={_THEIRS}"
EVALUATION_ROWS: list[Bad] = [
    # ------------------------------------------------------------------------------------------------------ evaluate
    *each("evaluate", 2, "", "jugde", "judge", "judge --ours {}/responses/ours.jsonl", "table", "export {}/folder"),
    *(
        bad
        for name in (
            "cut",
            "deep",
            "empty",
            "latin",
            "doubled",
            "no_tokens",
            "text_tokens",
            "huge_tokens",
            "huge_group",
            "empty_prompt",
            "role",
            "nasty",
            "fewer",
            "others",
        )
        for bad in [
            *each("evaluate", 3, f"judge --ours {{}}/responses/{name}.jsonl --against sft={_THEIRS} --out {{}}/e"),
            *each("evaluate", 3, f"judge --ours {_THEIRS} --against sft={{}}/responses/{name}.jsonl --out {{}}/e"),
        ]
    ),
    *each(
        "evaluate",
        2,
        f"{_JUDGE} --against sft",
        f"{_JUDGE} --against =x",
        f"{_JUDGE} --against sft={_THEIRS} sft={_THEIRS}",
        f"{_JUDGE} --against ours={_THEIRS}",
        f"{_JUDGE} --against sft={_THEIRS} --prompts 0",
        f"{_JUDGE} --against sft={_THEIRS} --prompts many",
        f"{_JUDGE} --against sft={_THEIRS} --seed -1",
        f"{_JUDGE} --against sft={_THEIRS} --expect 1 2",
        f"{_JUDGE} --against sft={_THEIRS} --dry-run --expect 90 90 90",
        f"{_JUDGE} --against sft={_THEIRS} --dry-run --expect nan 0 0",
        f"{_JUDGE} --against sft={_THEIRS} --set run.seed=1",
        f"{_JUDGE} --against sft={_THEIRS} --config {{}}/good.yaml",
        f"{_JUDGE} --against sft={{}}/none.jsonl",
        f"{_JUDGE} --against sft={{}}/none.jsonl --dry-run",
        f"{_JUDGE} --against sft={{}}/folder --set data.evaluation=[{{}}/empty.jsonl]",
        f"{_JUDGE} --against sft={{}}/fifo.jsonl",
        f"{_JUDGE} --against sft=/dev/zero",
    ),
    *each("evaluate", 6, f"{_PAIRED.replace('{}/e', '/dev/null/x')}", f"{_PAIRED.replace('{}/e', '{}/good.yaml')}"),
    *(
        bad
        for name in (
            "none",
            "no_kind",
            "other_kind",
            "list_kind",
            "typo",
            "text",
            "no_address",
            "no_scheme",
            "bad_port",
            "bracket",
            "password",
            "no_prompt",
            "prompt_list",
            "prompt_slots",
            "no_key",
            "no_module",
            "no_function",
            "not_callable",
            "dots",
            "no_model",
            "file_model",
            "people",
        )
        for bad in each("evaluate", 2, f"{_PAIRED} --judge {{}}/judges/{name}.yaml")
    ),
    *(bad for name in BAD_CONFIGS for bad in each("evaluate", 2, f"{_PAIRED} --judge {{}}/{name}.yaml")),
    *each(
        "evaluate",
        2,
        f"{_PAIRED} --judge {{}}/fifo.yaml",
        f"{_PAIRED} --judge {{}}/folder",
        f"{_PAIRED} --judge /dev/zero",
        f"{_PAIRED} --judge {{}}/responses/ours.jsonl",
        f"{_PAIRED} --judge {{}}/judges/rule.yaml --judge {{}}/judges/rule.yaml",
    ),
    *each("evaluate", 4, f"{_PAIRED} --judge {{}}/judges/policy.yaml"),
    *(
        bad
        for name in ("pairs_cut", "pairs_list", "pairs_types", "pairs_huge", "fifo", "none", "no_pairs")
        for bad in [
            *each("evaluate", 3, f"table {{}}/evaluations/{name}", f"votes {{}}/evaluations/{name}"),
            *each("evaluate", 3, f"page {{}}/evaluations/{name} --out {{}}/p.html"),
        ]
    ),
    *(
        bad
        for name in ("unjudged", "verdicts", "verdicts_deep", "judges", "judges_list", "votes")
        for bad in each("evaluate", 3, f"table {{}}/evaluations/{name}")
    ),
    *(
        bad
        for name in ("unjudged", "table", "table_deep", "table_version", "none")
        for bad in [
            *each("evaluate", 3, f"export {{}}/evaluations/{name} --format csv --out {{}}/t.csv"),
            *each("report", 3, f"--evaluation {{}}/evaluations/{name}"),
        ]
    ),
    *each(
        "evaluate",
        2,
        "table {}/evaluations/unjudged --draws 1",
        "table {}/evaluations/unjudged --seed x",
        "export {}/evaluations/unjudged --format word --out x",
        "page {}/evaluations/unjudged --out {}/p.html --pairs 0",
        "page {}/evaluations/unjudged --out {}/p.html --pairs 9",
        "page {}/evaluations/unjudged --out {}/p.html --repeats 9",
        "page {}/evaluations/unjudged --out {}/good.yaml",
        f"table {LONG}",
    ),
    *each(
        "evaluate",
        3,
        "page {}/evaluations/unjudged --out {}/p.html --against dpo",
        "page {}/evaluations/unjudged --out {}/p.html --guideline {}/none",
        "page {}/evaluations/unjudged --out {}/p.html --guideline {}/fifo",
        "page {}/evaluations/unjudged --out {}/p.html --guideline {}/latin.yaml",
        "votes {}/evaluations/unjudged",
        "votes {}/evaluations/unjudged {}/page.html",
        "votes {}/evaluations/unjudged {}/page.html {}/good.yaml",
        "votes {}/evaluations/unjudged {}/good.yaml {}/good.yaml",
        "votes {}/evaluations/unjudged {}/none {}/none",
        "votes {}/evaluations/unjudged {}/fifo {}/fifo",
    ),
    Bad("evaluate", ["table", "{}/" + NASTY], 3),
    Bad("evaluate", [NASTY], 2),
    Bad("evaluate", [*f"judge --ours {_THEIRS} --out x --against".split(), f"{NASTY}=x"], 2),
    # ---------------------------------------------------------------------------------------------- the paper's table
    *each("paper", 2, "", "--plan", "--config {}/none.yaml", "--config {}/folder", "--config {}/fifo.yaml"),
    *(bad for name in BAD_CONFIGS for bad in each("paper", 2, f"--config {{}}/{name}.yaml --plan")),
    *(
        bad
        for name in ("no_tasks", "typo", "command", "order", "absent", "option", "judged", "label")
        for bad in each("paper", 2, f"--config {{}}/plans/{name}.yaml --plan")
    ),
    *each(
        "paper",
        2,
        "--config {}/plans/whole.yaml --commands",
        "--config {}/plans/whole.yaml --plan --ranks 0",
        "--config {}/plans/whole.yaml --plan --ranks 3x",
        "--config {}/plans/whole.yaml --plan --methods dpo",
        "--config {}/plans/whole.yaml --plan --again hh/dpo",
        "--config {}/judges/rule.yaml --plan",
    ),
    Bad("paper", ["--config", NASTY], 2),
    # --------------------------------------------------------------------------------------------- what a run will need
    *each("plan", 2, "", "--config {}/none.yaml", "--config {}/folder", "--config {}/fifo.yaml"),
    *(bad for name in BAD_CONFIGS for bad in each("plan", 2, f"--config {{}}/{name}.yaml")),
    *each(
        "plan",
        2,
        "--config {}/good.yaml --gpus 0",
        "--config {}/good.yaml --gpu z9",
        "--config {}/good.yaml --shape nothing-known",
        "--config {}/good.yaml --shape {}/text_hidden",
        "--config {}/good.yaml --shape {}/config_deep",
        "--config {}/good.yaml --shape {}/fifo_config",
        "--config {}/good.yaml --command train",
        "--config {}/good.yaml --utilisation 2",
        "--config {}/good.yaml --gpus 8 --shape llama-2-7b run.sed=1",
        "--config {}/good.yaml model.policy={}/none",
        "--config {}/judges/rule.yaml",
    ),
    Bad("plan", ["--config", "{}/good.yaml", "--shape", NASTY], 2),
]
