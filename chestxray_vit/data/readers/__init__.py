"""One reader for each form of release."""
