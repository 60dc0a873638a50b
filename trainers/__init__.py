"""What learns: table and cache, folds, samplers, backbones, losses, training, scoring and metrics."""
