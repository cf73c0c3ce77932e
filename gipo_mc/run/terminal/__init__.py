"""How a command speaks to a terminal and how it ends. Nothing here imports what takes time."""
