"""The recipe: everything a run depends on, checked before anything loads."""

from elocute.recipe.judges import Judges
from elocute.recipe.load import dump_recipe, load_judges, load_recipe, load_rewards
from elocute.recipe.schema import Recipe

__all__ = ["Judges", "Recipe", "dump_recipe", "load_judges", "load_recipe", "load_rewards"]
