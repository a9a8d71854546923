"""Audit a labeled image set: shortcuts, label errors, findings and their report."""
