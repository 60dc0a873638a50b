"""Optuna studies: their storage, the workers that share them, pruning by folds, and what the best trial is worth."""
