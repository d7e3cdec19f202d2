"""The rows that a run is evaluated on, before and after."""

from elocute.data.rows import read_rows
from elocute.data.types import Example
from elocute.errors import InputError
from elocute.evaluation.evaluate import read_eval_rows
from elocute.evaluation.independent import check_label_listeners
from elocute.evaluation.read_aloud import read_rows_to_read
from elocute.models import reads_aloud
from elocute.recipe import Recipe


def read_held_out(recipe: Recipe) -> list[Example]:
    """The rows of data.eval, checked: what the recipe's kind of model is evaluated on; none without data.eval."""
    data, how = recipe.data.eval, recipe.evaluation
    reads = data is not None and reads_aloud(recipe.model, read_rows(data))
    if how.labels and not reads:
        raise InputError("evaluation.labels: expected only for a model that reads data.eval aloud")
    if data is None:
        return []
    if not reads:
        return read_eval_rows(data, how.rows, how.ear, recipe.data.prompt_seconds)
    check_label_listeners(recipe)
    return read_rows_to_read(data, how.rows, recipe.model, how.ear, how.labels, "evaluation.labels")
