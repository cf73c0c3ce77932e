"""Following runs while they go on, from nothing but their folders: in a terminal, and as a page on this machine."""
