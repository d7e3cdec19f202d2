"""The learning rate, a function of the step alone (nothing to save)."""

import math

from elocute.recipe.schema import Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then constant, linear or cosine to 0."""
    optim = recipe.optim
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / (optim.warmup_steps + 1)
    done = (step - optim.warmup_steps) / max(1, recipe.steps - optim.warmup_steps)
    if optim.schedule == "constant":
        return optim.lr
    if optim.schedule == "linear":
        return optim.lr * (1 - done)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * done))
