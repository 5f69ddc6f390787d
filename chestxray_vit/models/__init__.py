"""The Vision Transformer: building, checking, loading, scoring."""
