"""The sub-commands of gipo-mc evaluate, a module each: `add_arguments(parser)` and `run(own) -> exit code`."""
