"""Train a detector: input pipeline, phases, checkpoints, comparison of experiments."""
