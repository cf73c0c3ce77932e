"""Saving: who writes which part of a checkpoint, files with sums, and processes that write while training goes on."""
