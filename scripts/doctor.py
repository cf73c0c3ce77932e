"""What this machine has, what a run would use by default, and what to install for more.

    python scripts/doctor.py [--json] [--require-cuda-kernels]

Nothing is started and no connection is opened. Exit code 0: ready; 2: a run would not start, and the reason is shown.
"""

from __future__ import annotations

import json
import sys


def main(argv: list[str] | None = None) -> int:
    try:
        from gipo_mc.run.arguments import Parser
        from gipo_mc.tools import doctor
    except ModuleNotFoundError as error:
        print(
            f"{error}. gipo_mc is not installed for {sys.executable}: make venv, or pip install -e .", file=sys.stderr
        )
        return 2
    parser = Parser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--require-cuda-kernels", action="store_true", help="count an extension built without nvcc as a problem"
    )
    arguments = parser.parse_args(argv)
    findings, uses = doctor.examine(arguments.require_cuda_kernels), doctor.defaults()
    if arguments.json:
        print(json.dumps(doctor.as_json(findings, uses), indent=2))
    else:
        doctor.show(findings, uses)
    return doctor.exit_code(findings)


if __name__ == "__main__":
    sys.exit(main())
