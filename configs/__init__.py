"""The typed configuration (`schema.py`), the YAML presets, and the experiment log (`LOG.md`)."""
