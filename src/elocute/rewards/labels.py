"""A row's labels, as rewards read them, and how much a label that was heard is worth when another was asked for."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, Protocol

import numpy as np

from elocute.data.types import Example
from elocute.errors import InputError
from elocute.prosody.schema import Dimension, Schema, given_labels
from elocute.rewards.outcome import Reward, Unavailable

Credit = Literal["match", "ordinal", "probability"]


class LabelListener(Reward, Protocol):
    """A reward that hears labels, in these dimensions.

    The `detail` of what it has scored holds `heard`: the label heard in each of them that the row has a label in.
    check: InputError for a row that it has nothing to say about.
    """

    dimensions: tuple[str, ...]

    def check(self, examples: Iterable[Example]) -> None: ...


def can_judge(listener: LabelListener, example: Example) -> bool:
    """Whether the row has a label that the listener knows."""
    try:
        listener.check([example])
    except InputError:
        return False
    return True


def labels_of(example: Example, schema: Schema, dimensions: Collection[str]) -> dict[str, str]:
    """The row's labels in these dimensions, at least one. InputError, naming the row, when there is none, or one that
    the schema does not know."""
    labels = example.columns.get("labels") or {}
    if isinstance(labels, Mapping):
        labels = given_labels(labels)
    try:
        schema.check(labels)
    except InputError as error:
        raise InputError(f"{example.where}: {error}") from None
    found = {name: label for name, label in labels.items() if name in dimensions}
    if not found:
        raise InputError(f"{example.where}: labels: expected one for {' or '.join(dimensions)}, found none")
    return found


def credit(dimension: Dimension, wanted: str, probabilities: np.ndarray, kind: Credit) -> float:
    """What hearing `probabilities` [labels] is worth in [0, 1], when `wanted` was asked for.

    match: 1 if the likeliest label is the wanted one. ordinal: where the labels have an order also 1 − steps/(labels−1)
    for a near one. probability: the mean of that over the labels, each as probable as it is.
    """
    labels = list(dimension.labels)
    steps = np.abs(np.arange(len(labels)) - labels.index(wanted))
    worth = 1 - steps / (len(labels) - 1) if dimension.ordered and kind != "match" else (steps == 0).astype(float)
    if kind == "probability":
        return float(np.clip(probabilities @ worth, 0, 1))
    return float(worth[int(np.argmax(probabilities))])


def heard(dimension: Dimension, probabilities: np.ndarray) -> str:
    """The likeliest label."""
    return list(dimension.labels)[int(np.argmax(probabilities))]


def certain(dimension: Dimension, label: str) -> np.ndarray:
    """Probabilities [labels] of who names one label and nothing else."""
    return np.array([float(one == label) for one in dimension.labels])


def read_labels(reply: str, schema: Schema) -> Mapping[str, str] | Unavailable:
    """The labels in a reply: a JSON object of exactly the schema's dimensions, each with a label there is."""
    try:
        labels = json.loads(reply)
    except (ValueError, RecursionError):
        return Unavailable("the reply is not JSON")
    if not isinstance(labels, dict) or labels.keys() != schema.dimensions.keys():
        return Unavailable(f"the reply is not an object of {', '.join(schema.dimensions)}")
    if any(schema.problem(name, label) for name, label in labels.items()):
        return Unavailable("the reply has a label that the schema does not have")
    return {name: labels[name] for name in schema.dimensions}
