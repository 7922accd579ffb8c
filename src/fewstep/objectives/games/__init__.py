"""Adversarial objectives, and how two losses are balanced."""
