"""From a model and images to verdicts."""
