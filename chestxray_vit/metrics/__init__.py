"""Statistics of scores against labels: arrays in, numbers out."""
