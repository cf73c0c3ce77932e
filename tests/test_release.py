"""What `make release-check` compares. The check itself builds and installs, and is CI's."""

from __future__ import annotations

import re
import runpy

import yaml

from gipo_mc import __version__
from tests.source_rules import ROOT

CHECK = runpy.run_path(str(ROOT / ".ci" / "release_check"))
WHOLE = ["gipo_mc/__init__.py", "gipo_mc/report/templates/a.html", "csrc/a.h", "README.md", ".ci/run", "examples/a.py"]


def test_what_an_archive_lacks_is_a_fault() -> None:
    sdist, wheel = set(WHOLE), {*WHOLE[:2], "gipo_mc/_C.so", "gipo_mc-1.dist-info/RECORD"}
    assert CHECK["faults"](WHOLE, sdist, wheel) == []
    for name in WHOLE:
        assert f"the sdist lacks {name}" in CHECK["faults"](WHOLE, sdist - {name}, wheel)
    for name in WHOLE[:2]:
        assert f"the wheel lacks {name}" in CHECK["faults"](WHOLE, sdist, wheel - {name})
    assert any("kernels" in fault for fault in CHECK["faults"](WHOLE, sdist, wheel - {"gipo_mc/_C.so"}))
    assert "the wheel has tests/x.py" in CHECK["faults"](WHOLE, sdist, wheel | {"tests/x.py"})


def test_the_sdist_takes_every_folder_that_it_is_held_to() -> None:
    grafted = re.findall(r"^graft (\S+)$", (ROOT / "MANIFEST.in").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {*(f"{name}/" for name in grafted), "gipo_mc/"} == set(CHECK["SOURCE"])


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", changelog, flags=re.MULTILINE)
    assert released[0] == (__version__, str(citation["date-released"])) and citation["version"] == __version__
