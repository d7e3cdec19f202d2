"""The recipe: everything a run depends on, checked before anything loads."""

from elocute.recipe.load import load_recipe, save_recipe
from elocute.recipe.schema import Recipe

__all__ = ["Recipe", "load_recipe", "save_recipe"]
