"""Evaluate a detector on labeled images: predictions, metrics, plots, report."""
