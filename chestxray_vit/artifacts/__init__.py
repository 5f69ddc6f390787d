"""The files that pass between commands: metadata, predictions, thresholds, evaluation."""
