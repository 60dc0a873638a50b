"""Backbones learnt from images without labels: one file per method, the loop, and the watch for a collapse."""
