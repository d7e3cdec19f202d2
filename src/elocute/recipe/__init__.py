"""The recipe: everything a run depends on, checked before anything loads."""

from elocute.recipe.load import dump_recipe, load_recipe, load_rewards
from elocute.recipe.schema import Recipe

__all__ = ["Recipe", "dump_recipe", "load_recipe", "load_rewards"]
