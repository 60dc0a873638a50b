"""One file per command: parse, call, write. `rarefind` (scripts/cli.py) is their common entry point."""
