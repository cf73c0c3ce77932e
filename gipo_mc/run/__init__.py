"""A run between its start and its end: folder, session, checkpoints, logs, console, and the shape of a command."""
