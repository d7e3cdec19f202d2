"""What is drawn, read back from the SVG."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from elocute.report import charts
from elocute.report.charts import Series, line_chart, stacked_chart


def parse(figure: str) -> ElementTree.Element:
    """Well-formed as XML, or this raises."""
    return ElementTree.fromstring(figure)


def paths(figure: str, kind: str) -> list[str]:
    return [path.get("d") for path in parse(figure).iter("path") if path.get("class", "").startswith(kind)]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_a_line_rises_where_its_values_rise():
    line = points(paths(line_chart("t", [1, 2, 4], [Series("a", [0.0, 1.0, 2.0])]), "line")[0])
    assert [y for _, y in line] == sorted((y for _, y in line), reverse=True)  # SVG counts down
    first, second, third = (x for x, _ in line)
    assert third - second == pytest.approx(2 * (second - first), abs=0.3)  # steps are to scale


def test_values_lie_where_the_axis_says():
    figure = line_chart("t", [1, 2], [Series("a", [0.0, 3.0])])
    labels = [text for text in parse(figure).iter("text") if text.get("text-anchor") == "end"]
    ticks = {label.text: float(label.get("y")) - 4 for label in labels}
    line = points(paths(figure, "line")[0])
    assert line[0][1] == pytest.approx(ticks["0"], abs=0.1)
    assert line[1][1] == pytest.approx(ticks["3"], abs=0.1)


def test_a_missing_value_is_a_gap_and_a_lone_one_a_dot():
    path = paths(line_chart("t", [1, 2, 3, 4, 5], [Series("a", [1.0, 2.0, None, 2.0, None])]), "line")[0]
    assert path.count("M") == 2 and path.endswith("h0")
    assert len(points(path)) == 3


def test_band_is_value_plus_and_minus_spread():
    figure = line_chart("t", [1, 2], [Series("a", [1.0, 1.0], [0.5, 1.0])])
    middle = points(paths(figure, "line")[0])[0][1]
    upper_first, upper_last, lower_last, lower_first = (y for _, y in points(paths(figure, "band")[0]))
    assert middle - upper_first == pytest.approx(lower_first - middle, abs=0.2)
    assert middle - upper_last == pytest.approx(2 * (middle - upper_first), abs=0.3)
    assert "a: 1 ± 0.5" in figure


def test_stack_puts_each_series_on_the_one_before():
    figure = stacked_chart("t", [1], [Series("a", [3.0]), Series("b", [1.0]), Series("c", [None])])
    bars = [re.match(r"M\S+ (\S+?)V(\S+?)h", path) for path in paths(figure, "bar")[:2]]
    (low_floor, low_top), (high_floor, high_top) = ((float(bar[1]), float(bar[2])) for bar in bars)
    assert high_floor == low_top
    assert low_floor - low_top == pytest.approx(3 * (high_floor - high_top), abs=0.3)
    assert paths(figure, "bar")[2] == ""
    assert "total: 4" in figure and "c: –" in figure


def test_text_is_escaped():
    evil = '<script>alert("1")</script>&'
    figure = line_chart(evil, [1], [Series(evil, [1.0])], evil)
    parse(figure)
    assert "<script" not in figure


def test_screen_readers_hear_the_course():
    svg = next(parse(line_chart("Reward", [1, 2], [Series("mean", [0.25, 0.5])])).iter("svg"))
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "Reward, steps 1 to 2: mean from 0.25 to 0.5"


values = st.lists(st.none() | st.floats(-1e9, 1e9) | st.floats(-1e-9, 1e-9), min_size=1, max_size=30)


@settings(max_examples=150, deadline=None)
@given(values, st.integers(0, 10**6), st.integers(1, 50))
@example([0.0, 5e-324], 1, 1)
@example([-5e-324, 1e-310], 1, 1)
def test_every_point_lies_inside_the_drawing(values, start, stride):
    steps = [start + stride * i for i in range(len(values))]
    for path in paths(line_chart("t", steps, [Series("a", values)]), "line"):
        for x, y in points(path):
            assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
            assert charts.TOP - 0.1 <= y <= charts.HEIGHT - charts.BOTTOM + 0.1


@settings(max_examples=150, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_axes_have_a_handful_of_ticks_around_the_data(low, width):
    scale = charts._scale([1, 2], low, low + width)
    slack = 1e-6 * (scale.high - scale.low)
    assert scale.low <= low + slack and low + width <= scale.high + slack
    assert 3 <= len(charts._ticks(scale.low, scale.high, scale.tick)) <= 9
