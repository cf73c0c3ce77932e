"""What the Markdown pages name is there: links, files, tests, make targets, configuration keys; the layers, in one
wording. Blocks of Python compile and import what there is, rows are of a known format. The site has every page.

Each rule is a function from text to violations; it is applied to the repository, and to snippets that break it.
tests/test_readme.py runs the README's commands.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from gipo_mc.config import load_config, validate
from gipo_mc.data.formats import detect, parse
from tests.source_rules import ROOT
from tests.test_architecture import LEVELS

#: Folders that are not the project's own.
_OTHERS = {"build", "runs", "models", "data", "shared"}
PAGES = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not any(part.startswith(".") or part in _OTHERS for part in path.relative_to(ROOT).parts[:-1])
]
#: The pages that state the rule of layers.
LAYER_PAGES = ("CONTRIBUTING.md", "docs/architecture.md")


def layer_rule() -> str:
    """The rule of layers in one line, from the bottom up."""
    names = {"values": "errors, types, presets"}
    return " < ".join(", ".join(names.get(layer, layer) for layer in level) for level in LEVELS)


def layer_rule_violations(name: str, text: str) -> list[str]:
    """A page that states another rule of layers than the one that is tested, or none. Line breaks, backticks, braces
    and the slashes of folders do not count."""
    words = re.sub(r"\s+", " ", re.sub(r"[`{}]|(?<=\w)/(?=\W)", "", text))
    return [] if layer_rule() in words else [f"{name} does not hold the rule of layers in these words: {layer_rule()}"]


def link_violations(page: str, text: str, root: Path = ROOT) -> list[str]:
    """Relative links of a page (a path from the root) to files that are not there, or to headings that they lack."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    found = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (root / page).parent / path if path else root / page
        if not file.exists():
            found.append(f"{page} links to {target}, which is not there")
        elif anchor and file.suffix == ".md" and anchor not in _anchors(file.read_text(encoding="utf-8")):
            found.append(f"{page} links to {target}, and that page has no such heading")
    return found


def _anchors(text: str) -> set[str]:
    """Names of the headings as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def page_commands(text: str) -> list[list[str]]:
    """Shell commands of the fenced blocks marked sh, bash, shell or console, as words; comments and output left out."""
    commands = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if language not in {"sh", "bash", "shell", "console"}:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip()
            if language == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
            if words := shlex.split(line, comments=True):
                commands.append(words)
    return commands


def named_violations(page: str, text: str, root: Path = ROOT) -> list[str]:
    """Paths, make targets and configuration keys that a page names and the repository does not have. A path with NAME
    in it stands for the reader's own."""
    folders = r"(?:gipo_mc|scripts|configs|tests|docs|benchmarks|csrc|examples)"
    found = []
    commands = page_commands(text)
    quoted = [word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()]
    for word in [*(w for c in commands for w in c), *quoted]:
        path = word.strip("'\",;").rstrip(".").split("::")[0]
        is_path = re.fullmatch(rf"(?:\./)?{folders}/[\w./*-]*", path) and "NAME" not in path
        if is_path and not any(root.glob(path.removeprefix("./").rstrip("/"))):
            found.append(f"{page} names {word}, which is not there")
    makefile = root / "Makefile"
    targets = set(re.findall(r"^([a-z-]+):", makefile.read_text(), flags=re.MULTILINE)) if makefile.exists() else set()
    for words in commands:
        if words[0] == "make":
            named = [w for w in words[1:] if re.fullmatch(r"[a-z][a-z-]*", w)]
            found += [f"{page} says make {t}, and there is no such target" for t in named if t not in targets]
        train = next((i for i, w in enumerate(words) if re.search(r"scripts/train_\w+\.py$", w)), None)
        if train is not None:
            found += _train_command_violations(page, words[train + 1 :], root)
    return found


def missing_tests(page: str, text: str, root: Path = ROOT) -> list[str]:
    """Tests that a page names as `path::test_name`, the path from the root or from tests/, and that are not there."""
    found = []
    for path, name in re.findall(r"`([\w./]+\.py)::(\w+)", text):
        file = next((f for f in (root / path, root / "tests" / path) if f.is_file()), None)
        if file is None or f"\ndef {name}(" not in file.read_text(encoding="utf-8"):
            found.append(f"{page} names the test {path}::{name}, which is not there")
    return found


def _train_command_violations(page: str, words: list[str], root: Path) -> list[str]:
    config = words[words.index("--config") + 1] if "--config" in words else None
    overrides = [w for w in words if re.match(r"[a-z_]+(\.[a-z_]+)*=", w)]
    try:
        load_config(str(root / config) if config else None, overrides)
    except Exception as error:
        return [f"{page}: `{' '.join(words)}` is refused: {error}"]
    return []


def block_violations(page: str, text: str) -> list[str]:
    """Fenced blocks that a reader could not use: Python that does not compile or imports from gipo_mc what is not
    there, YAML that is no configuration, rows of no known format, a language that no test looks at. Blocks without a
    language show output; those of bash are tests/shell/test_documented_commands.py's."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        try:
            if language == "python":
                _check_python(block)
            elif language == "yaml":
                validate(yaml.safe_load(block) or {})  # a comment alone is no key
            elif language == "json":
                json.loads(block)
            elif language == "jsonl":
                for line in block.splitlines():
                    parse(row := json.loads(line), detect(row), ())
            elif language not in {"", "bash", "sh", "shell", "console"}:
                found.append(f"{page}: no test knows what to do with a block of {language}")
        except Exception as error:
            found.append(f"{page}: a block of {language} is wrong: {type(error).__name__}: {error}")
    return found


def _check_python(block: str) -> None:
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "gipo_mc":
                    importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "gipo_mc":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                getattr(module, alias.name)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_is_there(path: Path):
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    violations = link_violations(name, text) + named_violations(name, text) + missing_tests(name, text)
    violations += block_violations(name, text)
    assert not violations, "\n".join(violations)


def test_the_pages_state_the_layers_in_the_same_words():
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in LAYER_PAGES if (ROOT / name).is_file()}
    assert len(texts) == len(LAYER_PAGES), f"of {', '.join(LAYER_PAGES)} there is only {', '.join(texts)}"
    violations = [v for name, text in texts.items() for v in layer_rule_violations(name, text)]
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    "text",
    [
        "```bash\npython scripts/no_such_command.py\n```",
        "```sh\nmake no_target notarget\n```",
        "```console\n$ torchrun scripts/train_sft.py --config configs/missing.yaml\n```",
        "```bash\ntorchrun scripts/train_gi_ppo.py \\\n  parallel.tensors=2\n```",
        "see `gipo_mc/no_such_file.py`",
    ],
)
def test_rule_of_names_finds(text: str):
    assert named_violations("x.md", text)


def test_rule_of_names_allows():
    text = "```bash\nmake test  # all of it\n```\n`gipo_mc/types.py` `scripts/*` `csrc/NAME.cu` [x](LICENSE) [y](https://a.org/b)"
    text += "\n```console\n$ torchrun --nproc-per-node 2 gipo_mc/types.py\nscripts/this_is_output.py\n```"
    assert named_violations("x.md", text) == []


def test_rule_of_tests(tmp_path: Path):
    (tmp_path / "tests" / "run").mkdir(parents=True)
    (tmp_path / "tests" / "run" / "test_a.py").write_text("x = 1\n\ndef test_one(x):\n    test_two(x)\n")
    assert missing_tests("x.md", "`run/test_a.py::test_one` `tests/run/test_a.py::test_one`", tmp_path) == []
    for bad in ("run/test_a.py::test_two", "run/test_a.py::test_on", "test_a.py::test_one", "run/test_b.py::test_one"):
        assert missing_tests("x.md", f"a `{bad}`, b", tmp_path), bad
    assert len(missing_tests("x.md", (ROOT / "docs" / "reliability.md").read_text(), tmp_path)) > 100, "it names them"


def test_link_rule_finds(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# One `two`: three\n")
    (tmp_path / "b.md").write_text("")
    good = "[x](a.md#one-two-three) [y](../b.md) [z](https://a.org/b) ![p](a.md) [t](#top)\n# Top\n"
    (tmp_path / "docs" / "page.md").write_text(good)
    assert link_violations("docs/page.md", good, tmp_path) == []
    for bad in ("[x](b.md)", "[x](a.md#two)", "![p](picture.png)", '<img src="p.svg">', "[x](#nowhere)"):
        assert link_violations("docs/page.md", bad, tmp_path), bad


def test_layer_rule_of_a_page():
    rule = layer_rule()
    assert rule.startswith("errors, types, presets < config < ops < ") and rule.endswith(" < scripts")
    assert not layer_rule_violations("a.md", "x\n\n`" + rule.replace(" < ", "/ <\n", 3) + "`.")
    assert layer_rule_violations("a.md", rule.replace("data", "date")) and layer_rule_violations("a.md", "")


@pytest.mark.parametrize(
    "block",
    [
        "python\nfrom gipo_mc.errors import NoSuchError",
        "python\nimport gipo_mc.no_such_module",
        "python\nx = (",
        "yaml\nrun: {nme: x}",
        'jsonl\n{"texts": 1}',
        "json\n{",
        "ruby\n1",
    ],
)
def test_rule_of_blocks_finds(block: str):
    assert block_violations("x.md", f"```{block}\n```\n")
    assert not block_violations("x.md", "```python\nfrom gipo_mc.errors import DataError\n```\n```\nanything {\n```\n")


# --------------------------------------------------------------------------------------------------------- the site
def test_the_site_has_every_page_once_and_no_other():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
    pages = list(_leaves(config["nav"]))
    hooks = runpy.run_path(str(ROOT / "docs" / "site" / "hooks.py"))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    there |= set(hooks["PAGES"].values())
    assert sorted(pages) == sorted(there), "the nav of mkdocs.yml names each page of docs/ once"


class _Loader(yaml.SafeLoader):
    """mkdocs.yml names a function of Python, which is not called here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in _leaves(part)]


def test_links_between_the_root_and_docs_go_on_in_the_site():
    for_site = runpy.run_path(str(ROOT / "docs" / "site" / "hooks.py"))["for_site"]
    assert for_site("[a](docs/data.md#x) [b](LICENSE) [c](#y)", "index.md") == "[a](data.md#x) b (`LICENSE`) [c](#y)"
    assert for_site("[s](../../SECURITY.md)", "howto/data.md") == "[s](../SECURITY.md)"
    assert for_site("[r](../README.md) [f](faq.md)", "data.md") == "[r](index.md) [f](faq.md)"
    text = "1. a\n   b\n   - c\n\n```\n   d\n```\n"
    assert for_site(text, "data.md") == "1. a\n    b\n    - c\n\n```\n   d\n```\n"


def test_the_reference_is_what_the_code_says(capsys: pytest.CaptureFixture[str]):
    main = runpy.run_path(str(ROOT / "docs" / "site" / "reference.py"))["main"]
    assert main(["--check"]) == 0, capsys.readouterr().err
