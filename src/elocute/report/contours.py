"""How something was said, drawn: pitch over time and energy under it, as inline SVG with scales they have in common."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from elocute.prosody.measure import HOP_SECONDS, Contours
from elocute.report.charts import runs

WIDTH, PITCH, ENERGY, FOOT, LEFT = 220, 104, 36, 16, 28
"""Pixels: of a drawing, of its parts from top to bottom, and of the room for the scale of pitch at its left."""
DECIBELS = 40.0
"""Below the loudest frame of all drawings: where energy begins to be seen."""
_TICKS = (50, 75, 100, 150, 200, 300, 400, 500)
_HALF_OCTAVE = math.sqrt(2)


@dataclass(frozen=True)
class Scales:
    """What all drawings of a page have in common: seconds from 0, Hz by their logarithm, dB of full scale."""

    seconds: float
    low: float
    high: float
    loudest: float

    @classmethod
    def of(cls, found: Iterable[Contours]) -> "Scales":
        """Wide enough for all; the outermost hundredth of F0 may be cut, so that an octave's error does not rule."""
        found = list(found)
        voiced = np.concatenate([one.f0[one.f0 > 0] for one in found]) if found else np.zeros(0)
        low, high = np.percentile(voiced, (1, 99)) if len(voiced) else (100.0, 200.0)
        middle = math.sqrt(low * high)
        low, high = min(low / 1.12, middle / _HALF_OCTAVE), max(high * 1.12, middle * _HALF_OCTAVE)
        levels = [one.level.max() for one in found if len(one.level)]
        longest = max((len(one.f0) * HOP_SECONDS for one in found), default=1.0)
        return cls(max(longest, 0.1), float(low), float(high), float(max(levels, default=0.0)))

    def x(self, frame: float) -> float:
        return round(LEFT + (frame + 0.5) * HOP_SECONDS / self.seconds * (WIDTH - LEFT - 2), 1)

    def y(self, hertz: float) -> float:
        place = math.log(self.high / hertz) / math.log(self.high / self.low)
        return round(2 + min(max(place, 0.0), 1.0) * (PITCH - 4), 1)

    def height(self, level: float) -> float:
        return round(min(max(1 + (level - self.loudest) / DECIBELS, 0.0), 1.0) * (ENERGY - 4), 1)


def drawing(found: Contours, scales: Scales, colour: str, what: str) -> str:
    """One recording's pitch, gaps where it is unvoiced, and energy. colour: a class of the CSS; what: for its label."""
    bottom = PITCH + ENERGY
    energy, pitch = _energy(found.level, scales), _pitch(found.f0, scales)
    return (
        f'<svg class="voice {colour}" viewBox="0 0 {WIDTH} {bottom + FOOT}" role="img" '
        f'aria-label="{escape(f"{what}: {_in_words(found)}")}">{_axes(scales)}'
        f'<path class="band" d="{energy}"/><path class="line" d="{pitch}"/></svg>'
    )


def _pitch(f0: np.ndarray, scales: Scales) -> str:
    path = ""
    for run in runs([value or None for value in f0.tolist()]):
        points = " ".join(f"{scales.x(frame)} {scales.y(f0[frame])}" for frame in run)
        path += f"M{points}" + ("h0" if len(run) == 1 else "")
    return path


def _energy(level: np.ndarray, scales: Scales) -> str:
    """An area on the floor; every second frame is enough to see it."""
    frames = range(0, len(level), 2)
    if not frames:
        return ""
    floor = PITCH + ENERGY
    tops = " ".join(f"{scales.x(frame)} {round(floor - scales.height(level[frame]), 1)}" for frame in frames)
    return f"M{scales.x(frames[0])} {floor}L{tops} {scales.x(frames[-1])} {floor}Z"


def _axes(scales: Scales) -> str:
    floor, parts = PITCH + ENERGY, []
    for hertz in _spaced(scales):
        y = scales.y(hertz)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 4}" text-anchor="end">{hertz}</text>')
    parts.append(f'<path class="zero" d="M{LEFT} {floor}H{WIDTH}"/>')
    step = next((s for s in (0.5, 1, 2, 5) if scales.seconds / s <= 4.5), 10)
    for count in range(int(scales.seconds / step) + 1):
        x = round(LEFT + count * step / scales.seconds * (WIDTH - LEFT - 2), 1)
        anchor = "start" if count == 0 else "middle" if x < WIDTH - 14 else "end"
        parts.append(f'<path class="grid" d="M{x} {floor}v3"/>')
        parts.append(f'<text x="{x}" y="{floor + 13}" text-anchor="{anchor}">{count * step:g} s</text>')
    return "".join(parts)


def _spaced(scales: Scales) -> Sequence[int]:
    """Round frequencies within the scale, far enough from each other and from the top for their numbers."""
    shown: list[int] = []
    for hertz in _TICKS:
        above = scales.y(shown[-1]) if shown else PITCH + 13
        if scales.low <= hertz <= scales.high and 8 <= scales.y(hertz) <= above - 13:
            shown.append(hertz)
    return shown


def _in_words(found: Contours) -> str:
    seconds, voiced = len(found.f0) * HOP_SECONDS, found.f0[found.f0 > 0]
    if not len(voiced):
        return f"{seconds:.1f} s without a voice"
    low, middle, high = np.percentile(voiced, (5, 50, 95))
    return f"{seconds:.1f} s, pitch {low:.0f} to {high:.0f} Hz, in the middle {middle:.0f}"
