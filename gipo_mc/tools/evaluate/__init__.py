"""The sub-commands of scripts/evaluate.py, a module each: `add_arguments(parser)` and `run(own) -> exit code`."""
