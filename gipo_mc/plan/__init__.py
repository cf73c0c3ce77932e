"""What a run will need, by arithmetic: memory, communication, time and disk, before anything starts."""
