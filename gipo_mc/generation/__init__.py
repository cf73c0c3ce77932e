"""Generation: from prompts to responses on the training ranks. Knows nothing of rewards."""
