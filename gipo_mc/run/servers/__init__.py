"""Servers of the user's own that a command asks over HTTP, for rewards and for verdicts: what both have in common."""
