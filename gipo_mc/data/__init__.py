"""Data: rows from files, the hub or the built-in task -> tokenized sets. Knows nothing of models."""
