"""Denoisers in closed form: Gaussian mixtures, and the field of given samples."""
