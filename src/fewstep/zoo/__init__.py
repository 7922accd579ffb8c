"""Teachers and feature networks that ship with the package; each has a model card beside its weights, and a recipe that made it."""

from fewstep.zoo.shipped import SHIPPED_DENOISERS, digit_features, digits, mixture2d, shipped_denoiser

__all__ = ["SHIPPED_DENOISERS", "digit_features", "digits", "mixture2d", "shipped_denoiser"]
