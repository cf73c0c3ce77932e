"""The JSON Schemas that editors read: those of the classes, true of every shipped file, and as strict as the loader."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gipo_mc.config import Config, options, read_by, resume_rule
from gipo_mc.config.explain.json_schema import KINDS, json_schema, schema_file, schema_text
from gipo_mc.config.explain.units import UNITS
from gipo_mc.config.yaml_text import read_values
from tests.source_rules import ROOT

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is in the dev extra")

LINE = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")
#: Files in configs/ that are no configuration: judges, and the plans of scripts/paper.py.
OTHERS = re.compile(r"judges?/|judge\.yaml|paper/(llama2_7b|tiny)\.yaml")
FILES = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if not OTHERS.search(path.as_posix())]
#: Values of every kind, tried with every key.
PROBES: list[Any] = [
    *(None, True, False, 0, 1, 3, -1, 2.5, 1e-7, 10**15, "", "text", "none", "auto", "on", "cosine"),
    *("gi_ppo", "${run.seed}", [], ["text"], [3], ["${run.name}"], ["frozen"], [None], {}, {"a": 1}),
]
#: What the loader takes and the schema does not, on purpose: what YAML would not have to quote.
_QUOTED = re.compile(r"[-+.\d]|yes|no|on|off|true|false|[tf01yn]", re.IGNORECASE)


@cache
def validator(kind: str = "gi-ppo") -> Any:
    schema = json_schema(kind)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def errors(document: Any, kind: str = "gi-ppo") -> list[str]:
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator(kind).iter_errors(document)]


def refusal(key: str, value: Any) -> str:
    """Why the classes do not take this value, whatever the others are; "" where they do."""
    try:
        Config.model_validate(with_option(key, value))
    except ValidationError as error:
        return next((str(detail["type"]) for detail in error.errors() if detail["loc"]), "")
    return ""


def with_option(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_schemas_are_those_of_the_classes(kind: str) -> None:
    renew = "gipo-mc config schema --write"
    assert schema_file(kind).read_text(encoding="utf-8") == schema_text(kind), f"the classes have changed: {renew}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_shipped_file_names_its_schema_and_fits_it(path: Path) -> None:
    first = LINE.match(path.read_text(encoding="utf-8"))
    assert first, "its first line tells editors where the schema is"
    schema = (path.parent / first[1]).resolve()
    assert schema.is_file() and schema.parent == schema_file("sft").parent.resolve()
    assert errors(read_values(str(path), "not read"), schema.stem) == []


def test_there_are_files_of_every_kind() -> None:
    named = {Path(LINE.match(path.read_text())[1]).stem for path in FILES}  # type: ignore[index]
    assert named == set(KINDS) and len(FILES) > 15


@pytest.mark.parametrize("key", options())
def test_the_schema_refuses_what_the_loader_refuses_and_takes_the_rest(key: str) -> None:
    """Values of all kinds for each key; references are resolved before the loader looks at them."""
    for value in PROBES:
        refused = bool(errors(with_option(key, value)))
        if "${" in str(value):
            fits = "'array'" in str(json_schema_of(key)) if isinstance(value, list) else key != "algorithm.name"
            assert refused != fits, (key, value)
            continue
        if said := refusal(key, value):
            assert refused or said == "escape" or "date" in key, (key, value, said)
        elif refused:
            quoted = isinstance(value, str) and _QUOTED.fullmatch(value)
            assert quoted or isinstance(value, bool) or value in (0, 1), (key, value, errors(with_option(key, value)))


def json_schema_of(key: str) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    properties = validator().schema["properties"]
    return properties[section]["properties"][name] if section else properties[name]  # type: ignore[no-any-return]


@pytest.mark.parametrize("document", [{"runs": {}}, {"run": {"iteration": 3}}, {"run": 3}, {"run.iterations": 3}, []])
def test_unknown_keys_and_sections_of_another_kind_are_refused(document: Any) -> None:
    assert errors(document)


@pytest.mark.parametrize("key", options())
def test_an_option_has_its_meaning_default_unit_and_rule(key: str) -> None:
    found, field = json_schema_of(key), options()[key]
    assert field.description and field.description[1:] in found["description"]
    assert found["default"] == field.get_default(call_default_factory=True)
    assert found["x-on-resume"] == resume_rule(key) and found.get("x-unit") == UNITS.get(key)
    assert errors(with_option(key, found["default"])) == []


def test_units_are_of_numbers_that_there_are() -> None:
    for key in UNITS:
        assert key in options() and options()[key].annotation in (int, float), key


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_command_does_not_read_is_not_suggested(kind: str) -> None:
    sections = validator(kind).schema["properties"]
    hidden = {
        f"{name}.{key}"
        for name, section in sections.items()
        for key, option in section.get("properties", {}).items()
        if option.get("doNotSuggest") and key != "preset"
    }
    assert hidden == {key for key in options() if "." in key} - set(read_by(KINDS[kind]))


def test_the_schema_is_shipped_in_the_package() -> None:
    assert '"gipo_mc.config" = ["schemas/*.json"]' in (ROOT / "pyproject.toml").read_text()
    assert json.loads(schema_file("dpo").read_text())["title"].endswith("train dpo")
