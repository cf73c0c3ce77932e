"""A start without its GPUs: every rank's modules on tensors without storage, its groups, its schedules."""
