"""Synthetic releases for tests and the demo."""
