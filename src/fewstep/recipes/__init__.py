"""Recipes: a run as a YAML file, read into typed values and built from the same parts as by
hand.
"""

from fewstep.recipes.reading.source import dump, load_recipe, shipped_names, shipped_text
from fewstep.recipes.recipe import DistillRecipe, PretrainRecipe, Recipe

__all__ = ["DistillRecipe", "PretrainRecipe", "Recipe", "dump", "load_recipe", "shipped_names", "shipped_text"]
