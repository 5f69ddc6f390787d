"""Decoding, preprocessing and augmenting images."""
