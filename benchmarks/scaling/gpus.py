"""Write the plan of the paper's 7B run on 8 to 4,096 GPUs into docs/performance.md.

    python benchmarks/scaling/gpus.py

It is arithmetic (`scripts/plan.py --scale-to`), so there is no record; a test compares the first lines with the code.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common.documents import insert  # noqa: E402
from gipo_mc.config import load_config  # noqa: E402
from gipo_mc.plan.goodput import FAILURE_HOURS, RESTART, scale, sizes  # noqa: E402
from gipo_mc.plan.hardware import UTILISATION, hardware  # noqa: E402
from gipo_mc.plan.run import read_run  # noqa: E402
from gipo_mc.plan.show.scale import scale_text  # noqa: E402

CONFIG, PAGE = ROOT / "configs/paper/hh_rl.yaml", ROOT / "docs/performance.md"
#: The page's tables, and whether the batch grows in them.
TABLES = {"plan: fixed batch": False, "plan: growing batch": True}


def text(grow: bool, last: int) -> str:
    """What the command prints, up to `last` GPUs."""
    run = read_run(load_config(str(CONFIG), []), config_file=str(CONFIG))
    found = scale(run, sizes(8, last), hardware("h100"), grow=grow, node=8, utilisation=UTILISATION)
    return scale_text(found, FAILURE_HOURS, RESTART)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for source, grow in TABLES.items():
        insert(PAGE, source, f"```\n{text(grow, 4096)}\n```")


if __name__ == "__main__":
    main()
