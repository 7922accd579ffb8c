"""Rows of tensors by key, computed once and kept on disk."""
