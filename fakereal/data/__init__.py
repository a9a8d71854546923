"""Folders of images: scan, split, separation, the demo set."""
