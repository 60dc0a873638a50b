"""What combines and judges scores: predictions, blending, thresholds, evaluation, submission and report."""
