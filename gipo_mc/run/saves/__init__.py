"""The saves of a run: one checkpoint after the other, written while training waits or while it goes on."""
