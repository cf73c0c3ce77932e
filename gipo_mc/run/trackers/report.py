"""The report of a run that has ended, for its trackers to keep.

It is made by a process of its own: drawing takes seconds and a hundred megabytes, and what goes wrong there is nothing
to the run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def make_report(run: Path, out: Path, seconds: float) -> Path | None:
    """Write the report of the run folder `run` to `out`; None where that fails or takes longer than this."""
    command = [sys.executable, "-m", "gipo_mc.report", str(run), str(out)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        ended = subprocess.run(command, capture_output=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out if ended.returncode == 0 else None
