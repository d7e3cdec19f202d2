"""The learning rate of every step, against the formulas written out."""

import math

import pytest

from elocute.recipe import load_recipe
from elocute.training.schedule import learning_rate


def rates(schedule: str, steps: int, warmup: int) -> list[float]:
    recipe = load_recipe(
        "recipes/starter/wavalign.yaml",
        ["model=src", "optim.lr=0.8", f"optim.schedule={schedule}", f"steps={steps}", f"optim.warmup_steps={warmup}"],
    )
    return [learning_rate(recipe, step) for step in range(steps)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5))]),
    ],
)
def test_without_warm_up(schedule, expected):
    assert rates(schedule, 4, 0) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_climbs_evenly_then_the_schedule_runs_from_its_top_over_what_is_left(schedule):
    found = rates(schedule, 7, 3)
    assert found[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert found[3:] == pytest.approx(rates(schedule, 4, 0))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_step_learns_also_when_warm_up_never_ends(schedule):
    assert rates(schedule, 3, 9) == pytest.approx([0.08, 0.16, 0.24])
    assert rates(schedule, 1, 0) == [0.8]
    assert all(0 < rate <= 0.8 for rate in rates(schedule, 50, 5))
