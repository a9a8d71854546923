"""Evaluate a detector on labelled images: predictions, metrics, plots, report."""
