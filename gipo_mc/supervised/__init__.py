"""SFT, reward model and DPO: one loop, and a task in a file of its own for each."""
