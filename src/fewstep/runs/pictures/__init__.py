"""Samples as pictures: files, captions, and what a run shows of itself."""
