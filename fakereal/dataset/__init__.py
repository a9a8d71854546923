"""Labeled image sets: scan, split, near-duplicates, image metadata, demo set."""
