"""What `gipo-mc` does, a module for each verb: `main(words) -> exit code`, and `parsers()` for completion."""
