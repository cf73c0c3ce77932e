"""`python -m gipo_mc.report RUN OUT`: the report of one run, written to OUT. Runs hand it to their trackers."""

from __future__ import annotations

import sys
from pathlib import Path

from gipo_mc.errors import GipoError
from gipo_mc.report.report import build_report
from gipo_mc.run.arguments import say_error

if __name__ == "__main__":
    try:
        build_report([Path(sys.argv[1])], Path(sys.argv[2]))
    except GipoError as error:
        sys.exit(say_error(error))
