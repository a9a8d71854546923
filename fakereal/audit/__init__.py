"""Audit a labelled image set: shortcuts, label errors, findings and their report."""
