"""The whole pipeline on the built-in task, as a user would run it, ending with one report.

    python scripts/demo.py

`gipo-mc demo` from a checkout.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("demo"))
