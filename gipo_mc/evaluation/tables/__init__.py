"""Win, tie and lose as a table: computed, kept as a file, printed, exported."""
