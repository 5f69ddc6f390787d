"""Heat maps of a model, and their scores on boxes."""
