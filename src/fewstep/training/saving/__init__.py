"""Checkpoints: what is in them, how they are written, and where a run goes on."""
