"""Decoded images at the model's size, kept on disk."""
