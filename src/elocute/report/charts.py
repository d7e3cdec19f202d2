"""Line charts and stacked bars as inline SVG: no library, no script, no network. Colours come from the page's CSS.

A chart is a <figure>: a heading, a legend with the latest values, and a drawing in which hovering a step shows its
values. Text is HTML-escaped here, so callers pass it as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 34
COLOURS = 8  # the CSS knows .c0 … .c7


@dataclass(frozen=True)
class Series:
    """Values [T], None where nothing was recorded; `spread` [T] draws a band of value ± spread."""

    name: str
    values: Sequence[float | None]
    spread: Sequence[float | None] | None = None


@dataclass(frozen=True)
class Scale:
    """Where steps and values lie in the drawing."""

    steps: Sequence[int]
    low: float
    high: float
    tick: float

    @property
    def pitch(self) -> float:
        """The narrowest distance between two steps, in steps: the room that one step has."""
        return min((b - a for a, b in zip(self.steps, self.steps[1:], strict=False)), default=1)

    @property
    def column(self) -> float:
        """The width of one step, in pixels."""
        return (WIDTH - LEFT - RIGHT) * self.pitch / (self.steps[-1] - self.steps[0] + self.pitch)

    def x(self, step: float) -> float:
        return round(LEFT + (step - self.steps[0] + self.pitch / 2) * self.column / self.pitch, 1)

    def y(self, value: float) -> float:
        return round(TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM), 1)


def line_chart(title: str, steps: Sequence[int], series: Sequence[Series], note: str = "") -> str:
    """One line a series over `steps` [T]; a gap where a value is missing."""
    edges = [edge for one in series for edge in _edges(one)]
    scale = _scale(steps, min(edges, default=0), max(edges, default=0))
    bands = "".join(_band(scale, one, index) for index, one in enumerate(series) if one.spread)
    lines = "".join(f'<path class="line c{index}" d="{_line(scale, one.values)}"/>' for index, one in enumerate(series))
    return _figure(title, note, scale, series, bands + lines)


def stacked_chart(title: str, steps: Sequence[int], series: Sequence[Series], note: str = "") -> str:
    """One bar a step, its parts stacked in the order of `series`; missing values count as 0. Nothing is negative."""
    floor = [0.0] * len(steps)
    layers = []
    for one in series:
        top = [below + (value or 0) for below, value in zip(floor, one.values, strict=True)]
        layers.append((floor, top))
        floor = top
    scale = _scale(steps, 0, max(floor))
    bars = "".join(f'<path class="bar c{i}" d="{_bars(scale, *layer)}"/>' for i, layer in enumerate(layers))
    return _figure(title, note, scale, series, bars, totals=floor)


def show_number(value: float | None) -> str:
    """Four significant digits, or a dash."""
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


def _edges(one: Series) -> list[float]:
    spreads = one.spread or [None] * len(one.values)
    pairs = [(value, spread or 0) for value, spread in zip(one.values, spreads, strict=True) if value is not None]
    return [value + sign * spread for value, spread in pairs for sign in (-1, 1)]


def _scale(steps: Sequence[int], low: float, high: float) -> Scale:
    """Round bounds around [low, high]; they include 0 when that costs little room."""
    if low > 0 and low < 0.6 * high:
        low = 0.0
    tiny = 1e-300  # below it, floats lose the digits that bounds and ticks need
    if high - low <= max(1e-9 * max(abs(low), abs(high)), tiny):  # a flat line stands in the middle, 0 at the floor
        pad = abs(high) / 2 if abs(high) > tiny else 1.0
        low, high = (low - pad if low else 0.0), high + pad
    tick = _round_step((high - low) / 4)
    return Scale(steps, math.floor(low / tick + 1e-9) * tick, math.ceil(high / tick - 1e-9) * tick, tick)


def _round_step(raw: float) -> float:
    """The one of 1, 2, 5 × 10^k that is nearest to `raw`, by ratio."""
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(factor for factor, below in ((1, 1.5), (2, 3.2), (5, 7.1), (10, 11)) if raw < below * power)


def _ticks(low: float, high: float, tick: float) -> list[float]:
    return [k * tick for k in range(math.ceil(low / tick - 1e-9), math.floor(high / tick + 1e-9) + 1)]


def runs(values: Sequence[float | None]) -> list[list[int]]:
    """The stretches of positions without a gap."""
    runs: list[list[int]] = []
    for index, value in enumerate(values):
        if value is not None:
            if index and values[index - 1] is not None:
                runs[-1].append(index)
            else:
                runs.append([index])
    return runs


def _line(scale: Scale, values: Sequence[float | None]) -> str:
    path = ""
    for run in runs(values):
        points = " L".join(f"{scale.x(scale.steps[i])} {scale.y(values[i])}" for i in run)
        path += f"M{points}" + ("h0" if len(run) == 1 else "")  # round caps turn a lone point into a dot
    return path


def _band(scale: Scale, one: Series, index: int) -> str:
    both = [
        None if value is None or spread is None else (value, spread)
        for value, spread in zip(one.values, one.spread or (), strict=True)
    ]
    path = ""
    for run in runs(both):
        upper = [f"{scale.x(scale.steps[i])} {scale.y(both[i][0] + both[i][1])}" for i in run]
        lower = [f"{scale.x(scale.steps[i])} {scale.y(both[i][0] - both[i][1])}" for i in reversed(run)]
        path += "M" + " L".join(upper + lower) + "Z"
    return f'<path class="band c{index}" d="{path}"/>'


def _bars(scale: Scale, floor: Sequence[float], top: Sequence[float]) -> str:
    width = round(scale.column - (1 if scale.column > 6 else 0), 2)
    return "".join(
        f"M{scale.x(step) - width / 2:.2f} {scale.y(below)}V{scale.y(above)}h{width}V{scale.y(below)}Z"
        for step, below, above in zip(scale.steps, floor, top, strict=True)
        if above > below
    )


def _axes(scale: Scale) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in _ticks(scale.low, scale.high, scale.tick):
        y = scale.y(value)
        kind = "zero" if value == 0 else "grid"
        parts.append(
            f'<path class="{kind}" d="M{LEFT} {y}H{right}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{show_number(value)}</text>'
        )
    first, last = scale.steps[0], scale.steps[-1]
    for step in _ticks(first, last, max(1.0, _round_step((last - first) / 6))) if last > first else [first]:
        x = scale.x(step)
        parts.append(
            f'<path class="grid" d="M{x} {bottom}v4"/>'
            f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{step:.0f}</text>'
        )
    parts.append(f'<text class="axis" x="{(LEFT + right) / 2}" y="{HEIGHT - 3}" text-anchor="middle">step</text>')
    return "".join(parts)


def _columns(scale: Scale, series: Sequence[Series], totals: Sequence[float] | None) -> str:
    """An invisible column a step: hovering it marks the step and shows its values as the browser's own tool tip."""
    parts = []
    for index, step in enumerate(scale.steps):
        lines = [f"step {step}"]
        for one in series:
            spread = one.spread[index] if one.spread else None
            lines.append(
                f"{one.name}: {show_number(one.values[index])}"
                + (f" ± {show_number(spread)}" if spread is not None else "")
            )
        lines += [f"total: {show_number(totals[index])}"] if totals else []
        parts.append(
            f'<g class="column"><path d="M{scale.x(step)} {TOP}V{HEIGHT - BOTTOM}"/>'
            f'<rect x="{scale.x(step) - scale.column / 2:.2f}" y="{TOP}" width="{scale.column:.2f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{escape(chr(10).join(lines))}</title></rect></g>'
        )
    return "".join(parts)


def _figure(
    title: str, note: str, scale: Scale, series: Sequence[Series], drawing: str, totals: Sequence[float] | None = None
) -> str:
    latest = [next((v for v in reversed(one.values) if v is not None), None) for one in series]
    first = [next((v for v in one.values if v is not None), None) for one in series]
    spoken = "; ".join(
        f"{one.name} from {show_number(a)} to {show_number(b)}" for one, a, b in zip(series, first, latest, strict=True)
    )
    label = f"{title}, steps {scale.steps[0]} to {scale.steps[-1]}: {spoken}"
    legend = "".join(
        f'<li><i class="c{index}"></i>{escape(one.name)} <b>{show_number(value)}</b></li>'
        for index, (one, value) in enumerate(zip(series, latest, strict=True))
    )
    return (
        f'<figure><figcaption><h3>{escape(title)}</h3><p>{escape(note)}</p></figcaption><ul class="legend">{legend}'
        f'</ul><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{_axes(scale)}{drawing}{_columns(scale, series, totals)}</svg></figure>"
    )
