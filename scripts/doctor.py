"""What this machine has, what a run would use by default, and what to install for more.

    python scripts/doctor.py [--json] [--require-cuda-kernels]

`gipo-mc doctor` from a checkout, and where the package is not installed.
"""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from gipo_mc.__main__ import main as gipo_mc
    except ModuleNotFoundError as error:
        print(
            f"{error}. gipo_mc is not installed for {sys.executable}: make venv, or pip install -e .", file=sys.stderr
        )
        return 2
    return gipo_mc("doctor")


if __name__ == "__main__":
    sys.exit(main())
