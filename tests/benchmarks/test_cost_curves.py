"""The curves' exponents, their table and their plot; what is measured is a run that answers as long as it may."""

import math
from xml.etree import ElementTree

import pytest

from benchmarks.cost_curves import SWEEPS, Point, exponent, markdown, plot, write_recipe
from elocute.data.rows import read_rows
from elocute.models import sizes_of_model
from elocute.recipe import load_recipe
from elocute.training.machine import Machine
from elocute.training.memory import lengths_of, reckon

X = [8, 16, 32, 64, 128]


@pytest.mark.parametrize("power", [1, 1.05, 1.5, 2])
def test_the_exponent_is_that_of_what_grows(power):
    """Whatever does not grow may stand beside it."""
    assert exponent(X, [50 + 0.3 * x**power for x in X]) == pytest.approx(power)


def test_one_quadratic_part_shows():
    assert exponent(X, [1 + 0.02 * x + 0.001 * x * x for x in X]) > 1.5
    assert exponent(X, [1 + x * math.log(x) for x in X]) > 1.1
    assert exponent([1, 2, 4], [9, 5, 3], 2) is None


def test_what_does_not_grow_has_none():
    assert exponent(X, [3, 3, 3, 3, 3]) is None


def result() -> dict:
    rows = []
    for name, (_, values) in SWEEPS.items():
        curves = {"seconds": [1 + x / values[0] for x in values], "mib": [100.0] * len(values)}
        exponents = {what: exponent(values, curve) for what, curve in curves.items()}
        rows.append({"work": name, "values": values, **curves, "exponents": exponents})
    return {"rows": rows}


def test_the_table_and_the_plot():
    lines = markdown(result()).splitlines()
    assert lines[2] == "| answers to a prompt, G | 8 … 128 | 2.00 … 17.00 | 1.00 | 100 … 100 | – |"
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(SWEEPS)
    drawn = ElementTree.fromstring(plot(result()["rows"]))
    assert len([part for part in drawn if part.tag.endswith("polyline")]) == 2 * (len(SWEEPS) + 1)


def test_a_point_is_a_recipe(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, Point(group=4, length=9, vocabulary=2048, prompts=3)))
    rows = read_rows(recipe.data.train)
    assert len(rows) == 3 and recipe.optim.micro_batch == 12
    sizes = sizes_of_model(recipe.model)
    assert sizes.vocabulary[0] == 2048
    assert lengths_of(recipe, rows).answer == 9
    assert reckon(recipe, sizes, lengths_of(recipe, rows), Machine(None)).bytes < 1 << 30
