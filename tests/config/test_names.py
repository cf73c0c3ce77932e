"""Names of files, and where those of the repository are."""

from __future__ import annotations

from pathlib import Path

import pytest

from gipo_mc.config import load_config, names
from gipo_mc.errors import ConfigError
from gipo_mc.evaluation.judge_config import load_judge
from gipo_mc.tools.paper.plan import load_plan
from tests.source_rules import ROOT


@pytest.mark.parametrize("load", [lambda file: load_config(file, []), load_judge, load_plan])
def test_a_file_that_is_not_there_names_a_folder_that_is(
    load: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside the checkout, too; an installed package knows of none."""
    assert callable(load)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f" {ROOT}/configs/(judges/|paper/)?\\."):
        load("nope.yaml")
    monkeypatch.setattr(names, "__file__", str(tmp_path / "site" / "gipo_mc" / "config" / "names.py"))
    with pytest.raises(ConfigError, match=r" configs/(judges/|paper/)? of the repository\."):
        load("nope.yaml")
