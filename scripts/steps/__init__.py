"""The stages of a run: inputs, work and the line each prints; `scripts/pipeline.py` calls them in order."""
