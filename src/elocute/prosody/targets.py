"""What a label sounds like: the mean and the standard deviation of what is measured, label by label.

They come from the schema (a dimension's `measure` and `bounds`) or from recordings that have labels. Rates and pitch
are compared by their logarithm: half as fast is as far from the mean as twice as fast.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elocute.errors import InputError
from elocute.prosody.measure import Prosody
from elocute.prosody.schema import LOGARITHMIC, Dimension

_LEAST_STD = {"pitch_range": 0.5, "energy": 0.5}  # semitones, dB; for logarithms:
_LEAST_LOG_STD = 0.02
_FEWEST = 3  # recordings of a label


@dataclass(frozen=True)
class Target:
    """One dimension's K labels over M measures: mean and std [K, M], by the logarithm where a measure has it."""

    dimension: Dimension
    measures: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    by_bounds: bool = False

    def closeness(self, label: str, prosody: Prosody) -> float:
        """1 / (1 + mean z² over the measures): 1 at the label's mean, ½ one standard deviation from it.

        Too much is worth as little as too few, and there is a way up from far away. Raises NotMeasured.
        """
        z = self._z(prosody)[list(self.dimension.labels).index(label)]
        return float(1 / (1 + (z**2).mean()))

    def probabilities(self, prosody: Prosody) -> np.ndarray:
        """P(label | what is measured) [K]: normal, independent measures, labels equally likely before. Raises
        NotMeasured."""
        log_p = -(0.5 * self._z(prosody) ** 2 + np.log(self.std)).sum(axis=1)
        p = np.exp(log_p - log_p.max())
        return p / p.sum()

    def label(self, prosody: Prosody) -> str:
        """The label that it has: by the schema's bounds if the target is of them, else the likeliest."""
        if self.by_bounds:
            return self.dimension.label_of(_value(prosody, self.measures[0]))
        return list(self.dimension.labels)[int(np.argmax(self.probabilities(prosody)))]

    def _z(self, prosody: Prosody) -> np.ndarray:
        values = [_scaled(measure, _value(prosody, measure)) for measure in self.measures]
        return (np.array(values) - self.mean) / self.std


class NotMeasured(Exception):
    """The recording has nothing that could be measured: it is silent, or has no voice."""


def target_of_bounds(dimension: Dimension) -> Target:
    """Each label's mean is the middle between its bounds, its standard deviation half their distance; the outermost
    labels are as wide as their neighbours. InputError for a dimension without bounds, or with one only."""
    if dimension.measure is None or len(dimension.bounds) < 2:
        raise InputError(
            f"{dimension.name}: expected a measure and at least two bounds in the schema, or recordings to calibrate by"
        )
    bounds = np.array([_scaled(dimension.measure, bound) for bound in dimension.bounds])
    width = np.diff(bounds)
    edges = np.concatenate([[bounds[0] - width[0]], bounds, [bounds[-1] + width[-1]]])
    mean, std = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    return Target(dimension, (dimension.measure,), mean[:, None], std[:, None], by_bounds=True)


def target_of_recordings(
    dimension: Dimension, measures: Sequence[str], recordings: Iterable[tuple[Mapping[str, str], Prosody]]
) -> Target:
    """Mean and standard deviation over the recordings of each label. InputError for a label with fewer than three."""
    values: dict[str, list[list[float]]] = {label: [] for label in dimension.labels}
    for labels, prosody in recordings:
        if dimension.name in labels:
            try:
                own = [_scaled(measure, _value(prosody, measure)) for measure in measures]
            except NotMeasured:
                continue  # counted below: what is left must be enough
            values[labels[dimension.name]].append(own)
    few = {label: len(own) for label, own in values.items() if len(own) < _FEWEST}
    if few:
        counts = ", ".join(f"{label} {count}" for label, count in few.items())
        raise InputError(f"{dimension.name}: expected at least {_FEWEST} recordings of each label, found {counts}")
    mean = np.array([np.mean(own, axis=0) for own in values.values()])
    std = np.array([np.std(own, axis=0, ddof=1) for own in values.values()])
    least = np.array([_LEAST_STD.get(measure, _LEAST_LOG_STD) for measure in measures])
    return Target(dimension, tuple(measures), mean, np.maximum(std, least))


def _value(prosody: Prosody, measure: str) -> float:
    value = getattr(prosody, measure)
    if value is None:
        raise NotMeasured(f"nothing to measure {measure} on")
    return value


def _scaled(measure: str, value: float) -> float:
    return float(np.log(value)) if measure in LOGARITHMIC else value
