"""Generation: from prompts to responses on the training ranks. Knows nothing of rewards."""

import gipo_mc.parallel.megatron  # noqa: F401  # before anything else imports Megatron-core
